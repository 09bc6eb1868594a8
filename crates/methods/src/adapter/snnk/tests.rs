//! What holds for an SNNK layer by its mathematics, and its counts on known models.

use pleach_nn::{HeadOptions, ModelDir, configure};
use serde_json::json;

use super::*;

fn bert() -> Box<dyn BackboneConfig> {
    let Value::Object(model) = json!({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 768,
        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522,
        "max_position_embeddings": 512, "type_vocab_size": 2}) else {
        panic!("a configuration is an object")
    };
    configure(&ModelDir::of_config(model), &HeadOptions::default()).unwrap()
}

#[test]
fn the_counts_of_the_paper() {
    let params = |config: Config| config.plan(&*bert()).unwrap().params();
    assert_eq!(params(Config::default()), 313_344);
    let narrow = Config { down_sample: Some(48), num_rfs: 8, ..Config::default() };
    assert_eq!(params(narrow), 24 * (48 * 8 + 48 * 768 + 768), "k m + k d + d");
    let fourier = Config { kernel: Kernel::Cos, ..Config::default() };
    assert_eq!(params(fourier), 24 * (768 * 4 * 16 + 768), "complex features of both signs");
    let saved = |save_projection| {
        let plan = Config { save_projection, ..Config::default() }.plan(&*bert()).unwrap();
        plan.tensors.iter().filter(|tensor| tensor.in_file()).map(PlannedTensor::numel).sum::<u64>()
    };
    assert_eq!((saved(true), saved(false)), (313_344 + 24 * 16 * 768, 313_344));
}

#[test]
fn exponentials_that_would_overflow_are_refused() {
    let config = Config { kernel: Kernel::Cos, normalize: Some(Normalize::None), ..Config::default() };
    let error = config.plan(&*bert()).unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().starts_with("normalize: "), "{error}");
    assert!(Config { normalize: None, ..config }.plan(&*bert()).is_ok());
}

#[cfg(feature = "torch")]
mod torch {
    use std::f64::consts::PI;

    use pleach_base::rng::Key;
    use tch::{Device, Kind, Tensor};

    use super::super::closed_form::Normal;
    use super::super::features::Features;
    use super::super::{Config, Kernel, Normalize, draws};

    fn t(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn normal(key: Key, shape: &[i64]) -> Tensor {
        let mut rng = key.rng();
        let n: i64 = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
        Tensor::from_slice(&values).reshape(shape)
    }

    /// A layer of `m` features of `d` inputs with draws of its own.
    fn features(config: &Config, d: usize) -> Features {
        let key = draws::key(config, "somewhere");
        let g = Tensor::from_slice(&draws::projection(config, key, d)).reshape([-1, d as i64]);
        let k = (config.kernel != Kernel::Relu).then(|| Tensor::from_slice(&draws::frequencies(config, key)));
        Features::new(config, g, k).unwrap()
    }

    fn product(config: &Config, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> f64 {
        let features = features(config, x.size()[0] as usize);
        let y = features.psi(&w.unsqueeze(0).to_kind(Kind::Double), b);
        features.phi(&x.unsqueeze(0).to_kind(Kind::Double)).times(&y).double_value(&[0, 0])
    }

    /// The kernel of rectified features of order 1.
    fn arc_cosine(x: &Tensor, w: &Tensor) -> f64 {
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        let sizes = (dot(x, x) * dot(w, w)).sqrt();
        let angle = (dot(x, w) / sizes).acos();
        sizes / (2.0 * PI) * (angle.sin() + (PI - angle) * angle.cos())
    }

    #[test]
    fn rectified_features_are_the_arc_cosine_kernel() {
        let (x, w) = (t(&[0.9, -0.4, 0.3, 0.7]), t(&[0.2, 0.8, -0.5, 0.4]));
        for orthogonal in [false, true] {
            let config = Config { num_rfs: 200_000, orthogonal, ..Config::default() };
            let (found, expected) = (product(&config, &x, &w, None), arc_cosine(&x, &w));
            assert!((found / expected - 1.0).abs() < 0.02, "{found} for {expected}");
            let rectified = (&x * &w).sum(Kind::Double).double_value(&[]).max(0.0);
            assert!((found - rectified).abs() > 0.1, "it is not max(w.x, 0)");
        }
    }

    #[test]
    fn fourier_features_are_their_activation() {
        let (x, w, b) = (t(&[0.3, -0.2, 0.5, 0.1]), t(&[0.2, 0.4, 0.3, -0.1]), t(&[0.7]));
        let z = (&x * &w).sum(Kind::Double).double_value(&[]) + 0.7;
        let base = Config { num_rfs: 200_000, normalize: Some(Normalize::None), ..Config::default() };
        let table = vec![[0.0, 0.5, 0.0], [0.1, 0.8, 0.3], [0.25, -0.4, 0.6]];
        let custom = |z: f64| table.iter().map(move |[k, a, b]| a * (2.0 * PI * k * z).cos() + b * (2.0 * PI * k * z).sin());
        for (kernel, spread, expected) in [
            (Kernel::Cos, 0.0, z.cos()),
            (Kernel::Cos, 0.1, z.cos()),
            (Kernel::Sin, 0.0, z.sin()),
            (Kernel::CustomFourier, 0.0, custom(z).sum()),
        ] {
            let fourier_table = (kernel == Kernel::CustomFourier).then(|| table.clone());
            let config = Config { kernel, spread, fourier_table, ..base.clone() };
            let found = product(&config, &x, &w, Some(&b.to_kind(Kind::Double)));
            assert!((found / expected - 1.0).abs() < 0.02, "{kernel:?} with M {spread}: {found} for {expected}");
            let exact = features(&config, 4).exact(&Tensor::from(z)).double_value(&[]);
            assert!((exact - expected).abs() < 1e-6, "{kernel:?}: {exact}");
        }
    }

    #[test]
    fn four_times_the_features_halve_the_error() {
        let (x, w) = (t(&[0.9, -0.4, 0.3, 0.7]), t(&[0.2, 0.8, -0.5, 0.4]));
        let error = |num_rfs: u32| {
            let squares = (0..400u64).map(|seed| {
                let config = Config { num_rfs, seed, ..Config::default() };
                (product(&config, &x, &w, None) - arc_cosine(&x, &w)).powi(2)
            });
            (squares.sum::<f64>() / 400.0).sqrt()
        };
        let ratio = error(64) / error(256);
        assert!((1.6..2.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn orthogonal_rows_are_orthogonal_within_a_block() {
        let config = Config { num_rfs: 7, orthogonal: true, ..Config::default() };
        let key = draws::key(&config, "somewhere");
        let g = Tensor::from_slice(&draws::projection(&config, key, 5)).reshape([7, 5]).to_kind(Kind::Double);
        let plain = Config { orthogonal: false, ..config };
        let free = Tensor::from_slice(&draws::projection(&plain, key, 5)).reshape([7, 5]).to_kind(Kind::Double);
        let products = g.matmul(&g.tr());
        let lengths = free.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let off = (products.diagonal(0, 0, 1) - lengths).abs().max().double_value(&[]);
        assert!(off < 1e-5, "lengths are those of independent rows: {off}");
        let block = products.narrow(0, 0, 5).narrow(1, 0, 5);
        let aside = (&block - block.diag(0).diag(0)).abs().max().double_value(&[]);
        assert!(aside < 1e-5, "{aside}");
    }

    #[test]
    fn shards_have_the_solution_of_the_whole() {
        let key = Key::seed(1);
        let (phi, targets) = (normal(key.named("phi"), &[64, 12]), normal(key.named("targets"), &[64, 3]));
        let whole = Normal::of(&phi, &targets).solve(1e-3).unwrap();
        let shards = (0..4).map(|i| Normal::of(&phi.narrow(0, 16 * i, 16), &targets.narrow(0, 16 * i, 16)));
        let sum = shards.reduce(|sum, next| sum.plus(&next)).unwrap().solve(1e-3).unwrap();
        assert!((&sum - &whole).abs().max().double_value(&[]) < 1e-8);
        let (phi, targets) = (phi.to_kind(Kind::Double), targets.to_kind(Kind::Double));
        let gradient = phi.tr().matmul(&(phi.matmul(&whole) - targets)) + &whole * 1e-3;
        assert!(gradient.abs().max().double_value(&[]) < 1e-9, "the loss is flat there");
        let flat = Tensor::zeros([4, 4], (Kind::Double, Device::Cpu));
        let error = Normal::sums(&flat, &flat).solve(0.0).unwrap_err();
        assert_eq!(error.code(), pleach_base::code::NON_FINITE);
    }

    #[test]
    fn another_seed_is_another_matrix() {
        let draw = |seed| {
            let config = Config { seed, ..Config::default() };
            draws::projection(&config, draws::key(&config, "somewhere"), 8)
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
