//! What holds for p-Adapter by its mathematics, and its counts on a known model.

use pleach_nn::{HeadOptions, ModelDir, Part, configure};
use serde_json::json;

use super::*;

/// A text decoder of BERT's shape.
fn bert(heads: u32) -> Box<dyn BackboneConfig> {
    let Value::Object(model) = json!({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": heads, "intermediate_size": 3072, "vocab_size": 30522,
        "max_position_embeddings": 512, "type_vocab_size": 2}) else {
        panic!("a configuration is an object")
    };
    configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap()
}

#[test]
fn the_counts_of_the_paper() {
    let (model, config) = (bert(12), Config::default());
    let plan = config.plan(&*model).unwrap();
    let of = |part: Part| {
        let own = plan.trained().filter(|tensor| model.sites()[tensor.site].part == part);
        own.map(PlannedTensor::numel).sum::<u64>()
    };
    // The paper's decoder has two attentions a block: 24 sites, 5,331,504 parameters.
    assert_eq!(of(Part::AttnOut), 12 * 222_146);
    assert_eq!(of(Part::FeedForward), 1_779_840);
    assert_eq!(24 * (of(Part::AttnOut) / 12) + of(Part::FeedForward), 7_111_344);
    let plain = Config { learnable_p: false, ffn_adapter_reduction_factor: Ffn::Switch(false), ..config };
    assert_eq!(plain.plan(&*model).unwrap().params(), 12 * 222_145);
}

#[test]
fn a_bottleneck_that_heads_do_not_divide_is_refused() {
    let error = Config::default().plan(&*bert(64)).unwrap_err();
    assert!(error.message().starts_with("reduction_factor: 768 / 8 = 96"), "{error}");
}

#[test]
fn more_bins_than_an_encoder_has_tokens_are_refused() {
    let whisper = pleach_nn::families().iter().find(|family| family.name() == "whisper").unwrap();
    let model: Map<String, Value> = serde_json::from_str(whisper.tiny()).unwrap();
    let model = configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap();
    let most = model.info().reads.first.fixed_tokens().unwrap() as u32;
    let plan = |image_sample_len| Config { image_sample_len, reduction_factor: 1, ..Config::default() }.plan(&*model);
    let error = plan(most + 1).unwrap_err();
    assert!(error.message().starts_with("image_sample_len: "), "{error}");
    let plan = plan(most).unwrap();
    let sites = model.sites();
    let crossed = plan.sites.iter().filter(|id| sites[**id].part == Part::CrossAttention).count();
    assert!(crossed > 0 && plan.sites.iter().all(|id| sites[*id].path.contains("decoder")), "the decoder alone");
}

#[cfg(feature = "torch")]
mod torch {
    use tch::{Kind, Tensor};

    use super::super::graph::{Graph, Laplacian, pooling};
    use super::super::module::{Affine, Module};

    const OPTIONS: (Kind, tch::Device) = (Kind::Double, tch::Device::Cpu);

    fn laplacian(p: f64, mu: f64) -> Laplacian {
        Laplacian { p: Tensor::from_slice(&[p]), mu: Tensor::from_slice(&[mu]), eps: 1e-8 }
    }

    /// Values without a pattern.
    fn drawn(name: &str, shape: &[i64]) -> Tensor {
        let mut rng = pleach_base::rng::Key::seed(5).named(name).rng();
        let values: Vec<f64> = (0..shape.iter().product::<i64>()).map(|_| f64::from(rng.normal())).collect();
        Tensor::from_slice(&values).reshape(shape)
    }

    fn off(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn at_two_it_is_plain_averaging() {
        let (a, f) = (drawn("a", &[2, 3, 5, 5]).softmax(-1, Kind::Double), drawn("f", &[2, 3, 5, 4]));
        let found = laplacian(2.0, 0.1).step(&a, None, &f, true);
        let expected = (a.matmul(&f) + &f * 0.1) / 1.1;
        assert!(off(&found, &expected) < 1e-6);
        assert!(off(&laplacian(2.0, 0.1).reweighted(&a, None, &f), &a) < 1e-6);
        assert!(off(&laplacian(1.5, 1e9).step(&a, None, &f, true), &f) < 1e-4, "a large mu leaves nodes alone");
    }

    /// Three nodes: one like the first, one unlike it. Exact numbers, the node's own edge left out.
    #[test]
    fn the_exponent_chooses_between_alike_and_different() {
        let f = Tensor::from_slice(&[0.0, 0.0, 1.0, 0.0, 0.0, 4.0]).reshape([1, 1, 3, 2]);
        let a = Tensor::full([1, 1, 3, 3], 1.0 / 3.0, OPTIONS);
        for p in [1.0, 1.5, 2.0, 2.5, 3.0] {
            let found = laplacian(p, 0.1).reweighted(&a, None, &f);
            let length = |distance: f64| (distance / 3.0f64.sqrt()).powf(p - 2.0) / 3.0;
            for (j, distance) in [(1, 1.0), (2, 4.0)] {
                let found = found.double_value(&[0, 0, 0, j]);
                assert!((found / length(distance) - 1.0).abs() < 1e-6, "p {p}, {j}: {found}");
            }
            let ratio = found.double_value(&[0, 0, 0, 1]) / found.double_value(&[0, 0, 0, 2]);
            assert!((ratio - 4.0f64.powf(2.0 - p)).abs() < 1e-6, "p {p}: {ratio}");
        }
        let own = laplacian(1.25, 0.1).reweighted(&a, None, &f).double_value(&[0, 0, 0, 0]) * 3.0;
        assert!((own / (2.0f64.sqrt() * 1e-8).powf(-0.75) - 1.0).abs() < 1e-9, "a node's own edge: {own}");
    }

    #[test]
    fn shares_of_neighbours_and_of_the_node_add_up() {
        let (a, f) = (drawn("a", &[1, 2, 6, 6]).softmax(-1, Kind::Double), drawn("f", &[1, 2, 6, 3]));
        let ones = Tensor::ones([1, 2, 6, 1], OPTIONS);
        let laplacian = laplacian(1.5, 0.3);
        let weights = laplacian.reweighted(&a, None, &f);
        let total = weights.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double) + 2.0 * 0.3 / 1.5;
        let alpha = total.reciprocal();
        let beta = &alpha * (2.0 * 0.3 / 1.5);
        assert!(off(&(&alpha * weights.matmul(&ones) + beta), &ones) < 1e-12);
        let found = laplacian.step(&a, None, &f, true);
        let expected = &alpha * weights.matmul(&f) + (&alpha * (2.0 * 0.3 / 1.5)) * &f;
        assert!(off(&found, &expected) < 1e-12);
    }

    /// Where queries and values are two sides, the rows of the queries of the whole matrix say the same.
    #[test]
    fn two_sides_are_the_rows_of_the_block_matrix() {
        let (a, q, v) =
            (drawn("a", &[1, 2, 3, 4]).softmax(-1, Kind::Double), drawn("q", &[1, 2, 3, 5]), drawn("v", &[1, 2, 4, 5]));
        let flat = |x: &Tensor| x.transpose(1, 2).flatten(-2, -1);
        let graph = Graph { weights: a.shallow_clone(), values: flat(&v), queries: Some(flat(&q)) };
        let (whole, nodes) = (graph.adjacency(), Tensor::cat(&[&q, &v], 2));
        assert!(off(&graph.nodes(), &flat(&nodes)) == 0.0);
        for own in [false, true] {
            let laplacian = laplacian(2.5, 0.2);
            let found = laplacian.step(&a, Some(&q), &v, own);
            let expected = laplacian.step(&whole, None, &nodes, own).narrow(2, 0, 3);
            assert!(off(&found, &expected) < 1e-12);
        }
    }

    #[test]
    fn many_queries_are_taken_some_at_a_time() {
        let (a, f) = (drawn("a", &[1, 1, 300, 300]).softmax(-1, Kind::Double), drawn("f", &[1, 1, 300, 256]));
        let laplacian = laplacian(1.5, 0.1);
        let whole = laplacian.reweighted(&a, None, &f);
        for (start, length) in [(0, 7), (218, 5), (290, 10)] {
            let queries = f.narrow(2, start, length);
            let part = laplacian.reweighted(&a.narrow(2, start, length), Some(&queries), &f);
            assert!(off(&part, &whole.narrow(2, start, length)) < 1e-3 * whole.max().double_value(&[]));
        }
        let others = whole.narrow(2, 218, 1).narrow(3, 0, 218);
        let queries = f.narrow(2, 218, 1);
        let alone = laplacian.reweighted(&a.narrow(2, 218, 1), Some(&queries), &f).narrow(3, 0, 218);
        assert!(off(&others, &alone) < 1e-12);
    }

    fn module(p: f64, m: f64) -> Module {
        let affine = |name: &str, input: i64, output: i64| Affine {
            weight: drawn(name, &[output, input]) * 0.5,
            bias: drawn(name, &[output]) * 0.1,
        };
        let (reduce, gate, out) = (affine("wi", 8, 4), affine("wg", 8, 4), affine("wo", 4, 8));
        let leaf = |value: f64| Tensor::from_slice(&[value]).set_requires_grad(true);
        Module { reduce, gate, out, p: leaf(p), m: leaf(m), mu: 0.1, eps: 1e-8, heads: 2, cross_own: false }
    }

    fn value(module: &Module) -> Tensor {
        let weights = drawn("a", &[2, 2, 3, 5]).softmax(-1, Kind::Double);
        let queries = Some(drawn("q", &[2, 3, 8]));
        let graph = Graph { weights, values: drawn("v", &[2, 5, 8]), queries };
        module.join(&drawn("y", &[2, 3, 8]), &module.spread(&graph)).square().sum(Kind::Double)
    }

    #[test]
    fn gradients_reach_both_exponents() {
        let (at, step) = (module(1.5, 0.2), 1e-5);
        value(&at).backward();
        let slope = |low: &Module, high: &Module| (value(high) - value(low)).double_value(&[]) / (2.0 * step);
        for (leaf, expected) in [
            (&at.p, slope(&module(1.5 - step, 0.2), &module(1.5 + step, 0.2))),
            (&at.m, slope(&module(1.5, 0.2 - step), &module(1.5, 0.2 + step))),
        ] {
            let found = leaf.grad().double_value(&[0]);
            assert!(expected.abs() > 1e-4 && (found / expected - 1.0).abs() < 1e-3, "{found} for {expected}");
        }
    }

    /// In float32 too: what the node's own edge would give must cancel exactly, as large as it is.
    #[test]
    fn a_nodes_own_edge_has_no_gradient() {
        let grads = |kind: Kind| {
            let a = drawn("a", &[1, 1, 4, 4]).softmax(-1, Kind::Double).to_kind(kind);
            let f = drawn("f", &[1, 1, 4, 3]).to_kind(kind).set_requires_grad(true);
            let exact = Laplacian { p: Tensor::from_slice(&[1.25]).to_kind(kind), mu: Tensor::from_slice(&[0.1]).to_kind(kind), eps: 1e-8 };
            (exact.step(&a, None, &f, true) * drawn("c", &[1, 1, 4, 3]).to_kind(kind)).sum(kind).backward();
            f.grad().to_kind(Kind::Double)
        };
        assert!(off(&grads(Kind::Float), &grads(Kind::Double)) < 1e-5);
    }

    #[test]
    fn bins_cover_all_tokens() {
        let found = Tensor::from_slice(&pooling(&[11, 3], &[5, 3], 5, 11)).reshape([2, 5, 11]);
        let x = drawn("x", &[1, 11]);
        let expected = x.adaptive_avg_pool1d(5);
        let pooled = found.get(0).matmul(&x.tr()).tr();
        assert!(off(&pooled, &expected) < 1e-6);
        let short = found.get(1);
        let identity = Tensor::eye(3, OPTIONS);
        assert!(off(&short.narrow(0, 0, 3).narrow(1, 0, 3), &identity) == 0.0);
        assert!(short.narrow(0, 3, 2).abs().max().double_value(&[]) == 0.0, "no more bins than tokens");
    }
}
