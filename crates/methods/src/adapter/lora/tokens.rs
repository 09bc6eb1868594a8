//! `trainable_token_indices`: rows of the token table that are trained beside the factors, as the method
//! `trainable_tokens` trains them alone. PEFT's file names them below a `token_adapter`, once for tied tables.

use indexmap::IndexMap;
use pleach_base::{Error, Result};
use pleach_nn::{BackboneConfig, Modules, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::common::refuse;
use crate::adapter::trainable_tokens::{Config as Rows, DELTA};
use crate::adapter::{AdapterConfig, Options};
use crate::plan::{Keep, Plan, PlannedTensor};

/// `trainable_token_indices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Tokens {
    /// Of the model's token table.
    Table(Vec<u32>),
    /// Of each of these tables.
    Tables(IndexMap<String, Vec<u32>>),
}

const FIELD: &str = "trainable_token_indices";

impl Tokens {
    fn rows(&self) -> Vec<Rows> {
        let rows =
            |ids: &[u32], target_modules| Rows { token_indices: ids.to_vec(), target_modules, ..Rows::default() };
        match self {
            Self::Table(ids) => vec![rows(ids, None)],
            Self::Tables(tables) => {
                tables.iter().map(|(name, ids)| rows(ids, Some(Modules::List(vec![name.clone()])))).collect()
            }
        }
    }

    /// # Errors
    /// `METHOD_CONFIG`.
    pub(super) fn validate(&self) -> Result<()> {
        self.rows().iter().try_for_each(Options::validate).map_err(|error| renamed(&error))
    }

    /// Adds the rows to a plan.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for ids that a table does not have, and for a table that is a target as well.
    pub(super) fn plan(&self, model: &dyn BackboneConfig, plan: &mut Plan) -> Result<()> {
        for rows in self.rows() {
            let own = rows.plan(model).map_err(|error| renamed(&error))?;
            for tensor in own.tensors.into_iter().filter(|tensor| tensor.keep == Keep::Trained) {
                if plan.sites.contains(&tensor.site) || plan.saved.contains(&tensor.site) {
                    let path = &model.sites()[tensor.site].path;
                    return Err(refuse(FIELD, &format!("`{path}` is trained otherwise already")));
                }
                let name = tensor.name.replace(DELTA, &format!("token_adapter.{DELTA}"));
                plan.tensors.push(PlannedTensor { name, ..tensor });
            }
        }
        Ok(())
    }

    /// The rows of one table.
    #[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "used by the hooks"))]
    pub(super) fn of(&self, site: &Site) -> Option<Rows> {
        let at = match self {
            Self::Table(_) => 0,
            Self::Tables(tables) => tables.keys().position(|name| {
                site.path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })?,
        };
        self.rows().into_iter().nth(at)
    }
}

/// An error of the method alone, under the name of this option.
fn renamed(error: &Error) -> Error {
    let message = error.message();
    let rest = message.strip_prefix("token_indices: ").or_else(|| message.strip_prefix("target_modules: "));
    error.code().error(format!("{FIELD}: {}", rest.unwrap_or(message))).maybe_hint(error.hint_text().map(str::to_owned))
}

#[cfg(feature = "torch")]
pub(super) use imp::hooks;

#[cfg(feature = "torch")]
mod imp {
    use pleach_base::{Result, code};

    use super::{DELTA, Tokens};
    use crate::adapter::trainable_tokens::sharing;
    use crate::adapter::{AdapterConfig, Hooks, Parts};
    use crate::plan::Plan;

    /// Adds the hooks of the planned rows, at every table that shares them.
    ///
    /// # Errors
    /// `INTERNAL` when a planned tensor is not there.
    pub(in super::super) fn hooks(tokens: &Tokens, parts: &Parts<'_>, hooks: &mut Hooks) -> Result<()> {
        for tensor in parts.plan.trained().filter(|tensor| tensor.part == DELTA) {
            let unknown = || code::INTERNAL.error(format!("`{}` is no table with trained rows", tensor.name));
            let rows = tokens.of(parts.site(tensor.site)).ok_or_else(unknown)?;
            let plan =
                Plan { tensors: vec![tensor.clone()], sites: sharing(parts.sites, tensor.site), ..Plan::default() };
            hooks.extend(rows.hooks(&parts.under(&plan, parts.key))?);
        }
        Ok(())
    }
}
