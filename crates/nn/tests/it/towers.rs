//! Models of two stacks and of images and sound: what transformers computes, in both layouts; hooks on either side of
//! attention between stacks; borders between blocks; the decoder's input.

use std::collections::{BTreeMap, BTreeSet};

use pleach_nn::{Forward, Group, HeadKind, Inputs, Layout, Output, Part, Reads, Role, ShiftIds, Source, State};
use rstest::rstest;
use tch::{Device, Kind, Tensor};

use crate::support::{Additive, Hooks, Model, Prefix, Sharpen, assert_near, case, distance, real, tensors, tiny};

/// A batch in the layouts of both stacks.
struct Batch {
    first: Layout,
    second: Option<Layout>,
    inputs: Inputs,
}

impl Batch {
    /// `given` are padded inputs by their names, with `labels` in place of a decoder's; `lengths` are those of text,
    /// `targets` those of labels.
    fn new(
        reads: &Reads,
        given: &BTreeMap<&str, Tensor>,
        (lengths, targets): (&[usize], &[usize]),
        packed: bool,
    ) -> Self {
        let mut inputs = Inputs::default();
        let mut lay = |source: &Source, lengths: &[usize]| {
            let name = source.name();
            let samples: Vec<u64> = (0..lengths.len() as u64).collect();
            let fixed = source.layout(samples.clone(), packed, Device::Cpu);
            let (layout, tensor) = match fixed {
                Some(layout) => (layout, given[name].shallow_clone()),
                None => {
                    let labels = reads.shift.filter(|_| name == "decoder_input_ids");
                    let ids = &given[if labels.is_some() { "labels" } else { name }];
                    let (layout, ids) = lay_out(ids, lengths, packed);
                    let ids = labels.map_or(ids.shallow_clone(), |shift| shift.shift_right(&ids, &layout));
                    (layout, ids)
                }
            };
            inputs.0.insert(name.to_owned(), tensor);
            layout
        };
        let first = lay(&reads.first, lengths);
        // Without labels the decoder reads what the encoder reads.
        let second =
            reads.second.as_ref().filter(|source| source.fixed_tokens().is_some() || given.contains_key("labels"));
        let second = second.map(|source| lay(source, targets));
        Self { first, second, inputs }
    }

    /// Text that is different in every row, and three labels or more.
    fn drawn(model: &Model, lengths: &[usize], packed: bool) -> Self {
        let reads = &model.config.info().reads;
        let (rows, width) = (lengths.len() as i64, *lengths.iter().max().unwrap() as i64);
        let numbers = |width: i64| {
            let all = Tensor::arange(rows * width, (Kind::Int64, Device::Cpu));
            ((all * 37i64 + 11i64).remainder(250i64) + 6i64).reshape([rows, width])
        };
        let ids = numbers(width);
        for (row, length) in lengths.iter().enumerate() {
            // The token that ends a text, where a tower of text looks for it.
            let _ = ids.get(row as i64).get(*length as i64 - 1).fill_(269i64);
        }
        let mut given = BTreeMap::from([("input_ids", ids), ("labels", numbers(width - 1) + 3i64)]);
        for source in reads.sources() {
            if let Source::Fixed { name, shape, .. } = source {
                let shape: Vec<i64> = std::iter::once(rows).chain(shape.iter().map(|n| *n as i64)).collect();
                let count: i64 = shape.iter().product();
                given.insert(name, waves(count, 0.5).reshape(&shape));
            }
        }
        let targets: Vec<usize> = lengths.iter().rev().map(|n| (*n - 1).max(1)).collect();
        Self::new(reads, &given, (lengths, &targets), packed)
    }

    fn run(&self, model: &Model, groups: &[Group<'_>]) -> Tensor {
        match model.backbone.forward(&self.cx(model, groups), &self.inputs) {
            // Row by row: similarities couple the batch.
            Output::Pair(pair) => Tensor::cat(&[pair.text, pair.image], -1),
            output => self.rows(model, output.tensor()),
        }
    }

    fn cx<'a>(&'a self, model: &'a Model, groups: &'a [Group<'a>]) -> Forward<'a> {
        Forward::eval(model.config.sites(), &self.first, groups).beside(self.second.as_ref())
    }

    /// Real tokens of the decoder; of other models the rows as they are.
    fn rows(&self, model: &Model, output: &Tensor) -> Tensor {
        match (model.config.info().head, &self.second) {
            (HeadKind::Seq2SeqLm, Some(second)) => real(second, output),
            _ => output.shallow_clone(),
        }
    }
}

/// Rows of `ids` `[batch, width]`, of which the first `lengths[i]` count, as the layout wants them.
fn lay_out(ids: &Tensor, lengths: &[usize], packed: bool) -> (Layout, Tensor) {
    let samples: Vec<u64> = (0..lengths.len() as u64).collect();
    let padded = Layout::padded(lengths.to_vec(), ids.size()[1] as usize, samples.clone(), Device::Cpu);
    if !packed {
        return (padded, ids.shallow_clone());
    }
    let flat = real(&padded, &ids.unsqueeze(-1)).squeeze_dim(-1);
    (Layout::packed(lengths.to_vec(), samples, Device::Cpu), flat)
}

/// Values without a pattern that a model could know.
fn waves(count: i64, shift: f64) -> Tensor {
    ((Tensor::arange(count, tch::kind::FLOAT_CPU) + shift) * 1.7).sin()
}

fn head(name: &str) -> HeadKind {
    match name {
        "seq2seq" => HeadKind::Seq2SeqLm,
        "image" => HeadKind::ImageClassification,
        "audio" => HeadKind::AudioClassification,
        "sequence" => HeadKind::SequenceClassification,
        "pair" => HeadKind::Contrastive,
        "bare" => HeadKind::Embedding,
        other => panic!("{other} is no head"),
    }
}

/// Hooks that open the softmax everywhere and change nothing.
fn opened(model: &Model) -> Hooks {
    let scores = model.config.sites().with_role(Role::AttnScores);
    scores.fold(Hooks::default(), |hooks, site| hooks.with(site.id, Sharpen(1.0)))
}

#[test]
fn every_family_gives_what_transformers_gives() {
    let recorded = tensors(&case("../towers.safetensors"));
    let names: BTreeSet<_> = recorded.keys().filter_map(|key| key.rsplit_once('.')).map(|(name, _)| name).collect();
    assert_eq!(names.len(), 11, "{names:?}");
    for name in names {
        let (family, head_name) = name.rsplit_once('-').unwrap();
        let model = tiny(family, Some(head(head_name)));
        let of = |key: &str| recorded.get(&format!("{name}.{key}"));
        let known = ["input_ids", "labels", "pixel_values", "input_features", "input_values"];
        let given: BTreeMap<_, _> = known.iter().filter_map(|key| Some((*key, of(key)?.shallow_clone()))).collect();
        let lengths = of("lengths").map_or(vec![1; 4], |lengths| Vec::<i64>::try_from(lengths).unwrap());
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        let expected = of("outputs").unwrap();
        let expected = if expected.dim() == 3 { expected.flatten(0, 1) } else { expected.shallow_clone() };
        let hooks = opened(&model);
        for packed in [false, true] {
            let batch = Batch::new(&model.config.info().reads, &given, (&lengths, &[5; 4]), packed);
            for groups in [&[][..], &[Group { rows: 0..3, hooks: &hooks }]] {
                let output = model.backbone.forward(&batch.cx(&model, groups), &batch.inputs);
                let off = distance(&batch.rows(&model, output.tensor()), &expected);
                assert!(off <= 5e-5, "{name}: off by {off:e}, packed {packed}");
                assert!(!output.tensor().requires_grad(), "the frozen model builds no graph");
            }
        }
    }
}

/// Something at every linear map, and keys in front of all attention.
fn busy(model: &Model) -> Hooks {
    let mut hooks = opened(model);
    for site in model.config.sites().with_role(Role::AttnKv) {
        let heads = site.dims.heads.unwrap();
        let table = |shift| waves((3 * heads.kv * heads.dim) as i64, shift) * 0.3;
        let [key, value] = [0.0, 1.0].map(|shift| table(shift).reshape([3, heads.kv as i64, heads.dim as i64]));
        hooks = hooks.with(site.id, Prefix { key, value });
    }
    for site in model.config.sites().with_role(Role::Linear).filter(|site| site.block.is_some()) {
        let shape = [site.dims.input as i64, site.dims.output as i64];
        hooks = hooks.with(site.id, Additive(waves(shape[0] * shape[1], 2.0).reshape(shape) * 0.03));
    }
    hooks
}

#[rstest]
#[case("t5")]
#[case("bart")]
#[case("whisper")]
#[case("clip")]
#[case("vit")]
#[case("audio-spectrogram-transformer")]
fn groups_see_their_own_rows_on_both_sides(#[case] name: &str) {
    let model = tiny(name, None);
    let hooks = busy(&model);
    let lengths = [7, 3, 7, 5];
    let groups = [Group { rows: 1..3, hooks: &hooks }];
    let alone = [Group { rows: 0..4, hooks: &hooks }];
    let run = |packed, groups: &[Group<'_>]| Batch::drawn(&model, &lengths, packed).run(&model, groups);
    let [padded, packed] = [false, true].map(|packed| run(packed, &groups));
    assert_near(&padded, &packed, 2e-5);
    let (bare, all) = (run(true, &[]), run(true, &alone));
    // Where each sequence's rows are in the output.
    let layout = Batch::drawn(&model, &lengths, true).second.filter(|_| model.config.info().reads.shift.is_some());
    let ranges: Vec<_> = (0..4).map(|i| layout.as_ref().map_or(i..i + 1, |layout| layout.token_range(i))).collect();
    for (row, range) in ranges.into_iter().enumerate() {
        let of = |all: &Tensor| all.narrow(0, range.start as i64, range.len() as i64);
        let expected = if (1..3).contains(&row) { of(&all) } else { of(&bare) };
        assert_near(&of(&packed), &expected, 2e-5);
        assert!(distance(&of(&all), &of(&bare)) > 1e-3, "the hooks do something");
    }
}

#[rstest]
#[case("t5")]
#[case("bart")]
#[case("whisper")]
#[case("clip")]
fn backward_by_blocks_gives_the_same_gradients(#[case] name: &str) {
    let model = tiny(name, None);
    let sites: Vec<_> = model.config.sites().with_role(Role::Linear).filter(|site| site.block.is_some()).collect();
    let leaves: Vec<_> = sites
        .iter()
        .map(|site| Tensor::full([site.dims.input as i64, site.dims.output as i64], 0.001, tch::kind::FLOAT_CPU))
        .map(|leaf| leaf.set_requires_grad(true))
        .collect();
    let add =
        |hooks: Hooks, (site, leaf): (&&pleach_nn::Site, &Tensor)| hooks.with(site.id, Additive(leaf.shallow_clone()));
    let mut hooks = sites.iter().zip(&leaves).fold(Hooks::default(), add);
    // The bias by distance, which the blocks of a stack share.
    let table = waves(8 * 4, 0.0).reshape([8, 4]).set_requires_grad(true);
    for site in model.config.sites().iter().filter(|site| site.path.ends_with("relative_attention_bias")) {
        hooks = hooks.with(site.id, Row(table.shallow_clone()));
    }
    let groups = [Group { rows: 0..3, hooks: &hooks }];
    let batch = Batch::drawn(&model, &[6, 4, 5], true);
    let (cx, blocks) = (batch.cx(&model, &groups), model.config.info().num_blocks);
    let loss = |state: State| {
        let state = model.backbone.finish(&cx, state);
        match model.backbone.head(&cx, &state) {
            Output::Pair(pair) => pair.logits_per_image.sin().sum(Kind::Float),
            output => batch.rows(&model, output.tensor()).sin().sum(Kind::Float),
        }
    };
    let mut wanted: Vec<_> = leaves.iter().collect();
    if name == "t5" {
        wanted.push(&table);
    }
    let embedded = || model.backbone.embed(&cx, &batch.inputs);
    let whole = (0..blocks).fold(embedded(), |state, index| model.backbone.block(index, &cx, state));
    loss(whole).backward();
    let expected: Vec<_> = wanted.iter().map(|leaf| leaf.grad().copy()).collect();
    for leaf in &wanted {
        let _ = leaf.grad().zero_();
    }

    // What enters each block, without a graph; then each block again, with one, from cut borders.
    let mut borders = Vec::new();
    let last = tch::no_grad(|| {
        (0..blocks).fold(embedded(), |state, index| {
            borders.push(state.cut(false));
            model.backbone.block(index, &cx, state)
        })
    });
    let mut above = last.cut(true);
    loss(State { hidden: above.hidden.shallow_clone(), ..above.shallow() }).backward();
    for (index, border) in borders.into_iter().enumerate().rev() {
        let below = border.cut(true);
        let out = model.backbone.block(index, &cx, below.shallow());
        let pairs = std::iter::once((&out.hidden, &above.hidden)).chain(out.carry.iter().zip(&above.carry));
        let dots: Vec<_> = pairs
            .filter(|(out, above)| out.requires_grad() && above.grad().defined())
            .map(|(out, above)| (out * above.grad()).sum(Kind::Float))
            .collect();
        Tensor::stack(&dots, 0).sum(Kind::Float).backward();
        above = below;
    }
    for (leaf, expected) in wanted.iter().zip(&expected) {
        let size = expected.abs().max().double_value(&[]);
        assert!(size > 1e-6, "a gradient reaches everything");
        assert_near(&(leaf.grad() / size), &(expected / size), 1e-5);
    }
}

/// Adds a row of a table of its own to each that is looked up.
struct Row(Tensor);

impl pleach_nn::SiteHook for Row {
    fn after(&self, _: &pleach_nn::SiteCx<'_>, x: &[Tensor], y: Vec<Tensor>) -> Vec<Tensor> {
        vec![&y[0] + Tensor::embedding(&self.0, &x[0], -1, false, false)]
    }
}

trait Shallow {
    fn shallow(&self) -> State;
}

impl Shallow for State {
    fn shallow(&self) -> State {
        let all = |list: &[Tensor]| list.iter().map(Tensor::shallow_clone).collect();
        Self { hidden: self.hidden.shallow_clone(), carry: all(&self.carry), tables: all(&self.tables) }
    }
}

#[rstest]
#[case("t5", "encoder.embed_tokens", 0)]
#[case("t5", "encoder.block.1.layer.1.DenseReluDense.wo", 1)]
#[case("t5", "encoder.final_layer_norm", 2)]
#[case("t5", "decoder.embed_tokens", 2)]
#[case("t5", "decoder.block.0.layer.1.EncDecAttention.k", 2)]
#[case("t5", "decoder.block.1.layer.0.SelfAttention.q", 3)]
#[case("t5", "decoder.final_layer_norm", 4)]
#[case("t5", "lm_head", 4)]
#[case("bart", "model.decoder.embed_positions", 2)]
#[case("whisper", "model.encoder.conv2", 0)]
#[case("whisper", "model.encoder.layer_norm", 2)]
#[case("whisper", "model.decoder.embed_tokens", 2)]
#[case("clip", "text_model.final_layer_norm", 2)]
#[case("clip", "vision_model.embeddings.patch_embedding", 2)]
#[case("clip", "visual_projection", 4)]
fn the_first_active_block_counts_through_both_stacks(#[case] name: &str, #[case] path: &str, #[case] first: usize) {
    let model = tiny(name, None);
    let site = model.config.sites().by_path(path).unwrap().id;
    let hooks = Hooks::default().with(site, Sharpen(1.0));
    let batch = Batch::drawn(&model, &[4], false);
    let groups = [Group { rows: 0..1, hooks: &hooks }];
    assert_eq!(batch.cx(&model, &groups).first_active_block(model.config.info().num_blocks), first);
}

#[test]
fn attention_between_stacks_is_told_apart() {
    let model = tiny("bart", None);
    let of = |role| model.config.sites().with_role(role).filter(|site| site.part == Part::CrossAttention).count();
    assert_eq!((of(Role::AttnKv), of(Role::AttnScores), of(Role::SublayerOut)), (2, 2, 2), "one a decoder's block");
    let shared = model.config.sites().by_path("model.shared").unwrap();
    let tied = model.config.sites().by_path("model.decoder.embed_tokens").unwrap();
    assert!(!shared.runs && tied.runs && shared.weight == tied.weight);
}

#[test]
fn a_decoder_reads_labels_shifted_right() {
    let labels = Tensor::from_slice(&[5i64, 6, 7, 8, 9, -100]).reshape([2, 3]);
    let shift = ShiftIds { start: 1, pad: 3 };
    let (layout, ids) = lay_out(&labels, &[3, 3], false);
    let expected = Tensor::from_slice(&[1i64, 5, 6, 1, 8, 9]).reshape([2, 3]);
    assert_eq!(shift.shift_right(&ids, &layout), expected);
    let labels = Tensor::from_slice(&[5i64, -100, 7, 8, 9]);
    let layout = Layout::packed(vec![3, 2], vec![0, 1], Device::Cpu);
    assert_eq!(shift.shift_right(&labels, &layout), Tensor::from_slice(&[1i64, 5, 3, 1, 8]));
}
