//! Ranks of passages: every distinct text is embedded once, by one rank, in batches of similar length.

use pleach_base::Result;
use pleach_data::Ragged;
use pleach_nn::Output;
use tch::{Kind, Tensor};

use super::metrics::Metric;
use super::set::Retrieval;
use super::{Scored, Scorer, batches, ranking};
use crate::agree;
use crate::engine::{Mode, forward, lay_out, with_virtual, wrong_head};

pub(super) fn score(scorer: &Scorer<'_>, set: &Retrieval, metrics: &[Metric]) -> Result<Scored> {
    let embeddings = embed(scorer, set)?;
    let pick = |indices: &[usize]| {
        let indices: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
        embeddings.index_select(0, &Tensor::from_slice(&indices).to_device(embeddings.device()))
    };
    let ranks = ranking::ranks(&pick(&set.queries), &pick(&set.candidates), &set.gold);
    Ok(Scored { metrics: ranking::metrics(&ranks, metrics), samples: set.queries.len() as u64 })
}

/// Embeddings of all texts `[texts, d]` in order, on every rank.
fn embed(scorer: &Scorer<'_>, set: &Retrieval) -> Result<Tensor> {
    let device = scorer.model.device();
    let width = scorer.model.config().info().hidden_size as i64;
    let lengths: Vec<usize> = set.texts.iter().map(pleach_data::Encoded::len).collect();
    let batches = batches(&lengths);
    let (rank, world) = (scorer.group.rank(), scorer.group.world());
    let mut own = vec![Tensor::zeros([0, width], (Kind::Float, device))];
    for batch in batches.iter().skip(rank).step_by(world) {
        scorer.observer.progress();
        agree::alive(scorer.group)?;
        let sequences: Vec<_> = batch.iter().map(|index| &set.texts[*index]).collect();
        let samples: Vec<u64> = batch.iter().map(|index| *index as u64).collect();
        let tasks: Vec<u32> = batch.iter().filter_map(|index| set.tasks.get(*index).copied()).collect();
        let (input, _) = lay_out(&Ragged::of(sequences), &samples, &tasks, device, false);
        let input = with_virtual(input, scorer.ground.front, scorer.ground.reads);
        match forward(scorer.model, scorer.hooks, &input, Mode::EVAL) {
            Output::Vectors(vectors) => own.push(vectors.to_kind(Kind::Float)),
            _ => return Err(wrong_head(scorer.ground.objective)),
        }
    }
    let of_rank = |rank: usize| batches.iter().skip(rank).step_by(world).flatten().copied();
    let counts: Vec<usize> = (0..world).map(|rank| of_rank(rank).count()).collect();
    let gathered = agree::gather_rows(scorer.group, &Tensor::cat(&own, 0), &counts)?;
    let mut place = vec![0i64; set.texts.len()];
    for (row, text) in (0..world).flat_map(of_rank).enumerate() {
        place[text] = row as i64;
    }
    Ok(gathered.index_select(0, &Tensor::from_slice(&place).to_device(device)))
}
