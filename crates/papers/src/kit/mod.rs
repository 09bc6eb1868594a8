//! What pages share: data ([`Data`], [`digits`]), models ([`Mlp`], [`Tiny`]), their pretraining ([`StandIn`]), training by the
//! engine ([`fit`]) and scores ([`accuracy`], [`loss`]).

mod adapt;
mod course;
mod data;
pub mod digits;
mod draws;
mod mlp;
mod score;
pub mod sequences;
mod standin;
mod tasks;
mod tiny;
mod train;

pub use adapt::{adapter, adapter_of, around, options, save};
pub use course::{Part, learn};
pub use data::Data;
pub use draws::{normal, order, uniform};
pub use mlp::{Act, Mlp, Shape};
pub use score::{accuracy, bare, loss, outputs};
pub use standin::StandIn;
pub use tasks::Tasked;
pub use tiny::{Tiny, bert, gpt2, llama, vit};
pub use train::{Batches, Recipe, fit, fit_batches, fit_with};

#[cfg(test)]
mod tests;
