//! What every router is asked: who its experts are, and what is trained.

use pleach_base::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::refuse;

/// Copies of a task's adapter when nothing is said.
const COPIES: u32 = 8;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Train {
    /// The router alone; the experts stay as they are.
    Router,
    /// Router and experts.
    All,
}

/// The experts of a router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Experts {
    /// Adapters that are there already or that the job trains first: names of its tasks, local folders, addresses of
    /// published steps (`s3://...`). The job then has one task more, in which the router learns. When left out, the router
    /// stands around the adapter of every task, which it has several copies of.
    #[serde(skip_serializing)]
    pub experts: Option<Vec<String>>,
    /// Copies of a task's adapter, where `experts` is left out; 8 when left out too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<u32>,
    /// What is trained: `router` alone, which is usual with `experts`, or `all`, which is usual without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<Train>,
    /// Name of the task in which a router over `experts` learns; `router` when left out.
    #[serde(skip_serializing)]
    pub name: Option<String>,
}

impl Experts {
    /// # Errors
    /// `METHOD_CONFIG`.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(experts) = &self.experts {
            if experts.len() < 2 {
                return Err(refuse("experts", "must be at least two"));
            }
            if let Some(count) = self.num_experts.filter(|count| *count as usize != experts.len()) {
                return Err(refuse("num_experts", &format!("is {count}, and `experts` names {}", experts.len())));
            }
        }
        if self.copies() < 2 {
            return Err(refuse("num_experts", "must be at least 2"));
        }
        if self.experts.is_none() && self.train == Some(Train::Router) {
            return Err(refuse("train", "copies that are new know nothing: a router over them needs `all`"));
        }
        Ok(())
    }

    /// Copies of a task's adapter.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.num_experts.unwrap_or(COPIES) as usize
    }

    /// How many experts there are.
    pub(crate) fn count(&self) -> usize {
        self.experts.as_ref().map_or_else(|| self.copies(), Vec::len)
    }

    /// Whether experts that are there already stay as they are.
    pub(crate) fn frozen(&self) -> bool {
        self.train.unwrap_or(Train::Router) == Train::Router
    }
}
