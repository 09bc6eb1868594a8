//! What is trained, in which ways, and what is to come out.

use std::fmt;

/// One workload.
#[derive(Debug)]
pub(in crate::bench) struct Workload {
    pub(in crate::bench) name: &'static str,
    /// In a few words.
    pub(in crate::bench) what: &'static str,
    /// Name by which `tests/bench/inputs.py` knows its inputs.
    pub(super) inputs: &'static str,
    /// Precision of the frozen weights.
    pub(super) dtype: Dtype,
    pub(super) classifies: bool,
    /// Rows of a step of one job.
    pub(super) batch: u32,
    /// Rank of the adapter of each job. Several are trained together by Pleach, one after the other by the baseline.
    pub(super) ranks: &'static [u32],
    /// Processes of either side; the cores are shared among them.
    pub(super) processes: &'static [u32],
    pub(in crate::bench) needs_gpu: bool,
    pub(in crate::bench) goals: &'static [Goal],
}

impl Workload {
    pub(in crate::bench) fn jobs(&self) -> usize {
        self.ranks.len()
    }
}

/// Precision of the frozen weights; adapters are float32 on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    Float32,
    BFloat16,
}

impl Dtype {
    /// Its name in PyTorch.
    pub(super) fn torch(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::BFloat16 => "bfloat16",
        }
    }

    /// How far losses of the two sides may be apart. Half precision is rounded in another order on each.
    pub(super) fn tolerance(self) -> f64 {
        match self {
            Self::Float32 => 1e-4,
            Self::BFloat16 => 5e-2,
        }
    }
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Goal {
    pub(in crate::bench) figure: Figure,
    pub(in crate::bench) bound: Bound,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::bench) enum Figure {
    /// Real tokens a second, Pleach over the baseline.
    Tokens,
    /// Time until the last job has ended, Pleach over the baseline.
    Wall,
    /// Start of the command to the end of the first step, less one steady step: the baseline over Pleach.
    StartUp,
    /// The most memory of all processes, Pleach over the baseline.
    Memory,
    /// Arithmetic over what the device's maker promises.
    Utilisation,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::bench) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub(in crate::bench) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

const fn at_least(figure: Figure, value: f64) -> Goal {
    Goal { figure, bound: Bound::AtLeast(value) }
}

const fn at_most(figure: Figure, value: f64) -> Goal {
    Goal { figure, bound: Bound::AtMost(value) }
}

/// One adapter on a small decoder; the others differ from it.
const PLAIN: Workload = Workload {
    name: "w1",
    what: "one LoRA (rank 16, all linear maps) on a Llama of 60 M parameters, 4 rows of 256 tokens a step",
    inputs: "w1",
    dtype: Dtype::Float32,
    classifies: false,
    batch: 4,
    ranks: &[16],
    processes: &[1, 2],
    needs_gpu: false,
    goals: &[at_least(Figure::Tokens, 1.25), at_most(Figure::Memory, 0.5), at_least(Figure::StartUp, 5.0)],
};

/// All of them.
pub(in crate::bench) const ALL: &[Workload] = &[
    PLAIN,
    Workload {
        name: "w1-bf16",
        what: "w1 with a base in bfloat16",
        dtype: Dtype::BFloat16,
        goals: &[at_least(Figure::Tokens, 1.8)],
        ..PLAIN
    },
    Workload {
        name: "w2",
        what: "eight LoRA jobs (rank 16) on w1's base, one row of 256 tokens a step each",
        inputs: "w2",
        batch: 1,
        ranks: &[16; 8],
        processes: &[1],
        goals: &[at_most(Figure::Wall, 0.55), at_most(Figure::Memory, 0.2)],
        ..PLAIN
    },
    Workload {
        name: "w3",
        what: "one LoRA (rank 16) for classification on a BERT of 22 M parameters, 16 rows of 8 to 512 tokens a step",
        inputs: "w3",
        classifies: true,
        batch: 16,
        processes: &[1],
        goals: &[at_least(Figure::Tokens, 5.0), at_most(Figure::Memory, 0.3)],
        ..PLAIN
    },
    Workload {
        name: "w5",
        what: "one LoRA (rank 16) on a Llama of 1 B parameters in bfloat16 on a GPU, 8 rows of 2,048 tokens a step",
        inputs: "w5",
        dtype: Dtype::BFloat16,
        batch: 8,
        processes: &[1],
        needs_gpu: true,
        goals: &[at_least(Figure::Tokens, 1.3), at_least(Figure::Utilisation, 0.45)],
        ..PLAIN
    },
    Workload {
        name: "w6",
        what: "sixteen LoRA jobs of ranks 4 to 64 on w5's base on a GPU, one row of 512 tokens a step each",
        inputs: "w6",
        dtype: Dtype::BFloat16,
        batch: 1,
        ranks: &[4, 8, 16, 32, 64, 4, 8, 16, 32, 64, 4, 8, 16, 32, 64, 16],
        processes: &[1],
        needs_gpu: true,
        goals: &[at_least(Figure::Tokens, 3.0)],
        ..PLAIN
    },
];

/// The workload of this name.
pub(in crate::bench) fn find(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name)
}
