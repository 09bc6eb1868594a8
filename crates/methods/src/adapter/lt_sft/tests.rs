use pleach_nn::{HeadKind, HeadOptions, ModelDir, configure};
use serde_json::json;

use super::*;

fn epochs(full: u64, sparse: u64) -> Config {
    Config {
        full_ft_max_epochs_per_iteration: Some(full),
        sparse_ft_max_epochs_per_iteration: Some(sparse),
        ..Config::default()
    }
}

fn steps(full: u64, sparse: u64) -> Config {
    Config {
        full_ft_max_steps_per_iteration: Some(full),
        sparse_ft_max_steps_per_iteration: Some(sparse),
        ..Config::default()
    }
}

fn mbert(head: HeadKind) -> Box<dyn BackboneConfig> {
    let config = json!({"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 768,
                        "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                        "vocab_size": 119_547, "max_position_embeddings": 512, "type_vocab_size": 2});
    let Value::Object(config) = config else { panic!("a configuration is an object") };
    let options = HeadOptions { kind: Some(head), num_labels: Some(3), ..HeadOptions::default() };
    configure(&ModelDir::of_config(config), &options).unwrap()
}

/// The sizes that the paper matches to those of MAD-X adapters, on multilingual BERT.
#[test]
fn the_numbers_of_the_paper() {
    let model = mbert(HeadKind::SequenceClassification);
    let task = 12 * 2 * 768 * 768;
    let language = 12 * 2 * 768 * 384 + 768 * 768;
    assert_eq!((task, language), (14_155_776, 7_667_712));
    let config = Config { ft_params_num: Some(task), ..epochs(3, 10) };
    let plan = config.plan(model.as_ref()).unwrap();
    let differences = |plan: &Plan| -> u64 {
        let own = plan.trained().filter(|tensor| tensor.part == WEIGHT.change || tensor.part == BIAS.change);
        own.map(PlannedTensor::numel).sum()
    };
    let norms = 25 * 2 * 768;
    let pooler = 768 * 768 + 768;
    assert_eq!(differences(&plan), 177_853_440 - norms, "all of the encoder with its pooler, but for normalisations");
    assert_eq!(plan.params(), differences(&plan) + 768 * 3 + 3, "and the head whole");
    let share = task as f64 / 177_853_440.0;
    assert!((share - 0.080).abs() < 5e-4, "{share}");
    let norms_too = Config { freeze_layer_norm: false, ..config.clone() };
    assert_eq!(differences(&norms_too.plan(model.as_ref()).unwrap()), 177_853_440);
    let no_tables = Config { freeze_embeddings: true, ..config };
    assert_eq!(differences(&no_tables.plan(model.as_ref()).unwrap()), 12 * 7_087_872 - 24 * 768 * 2 + pooler);
}

#[test]
fn phases_add_up_to_the_training() {
    assert_eq!(steps(5, 4).phases(9), [5, 4]);
    let twice = Config { n_ft_iterations: 2, ..steps(5, 4) };
    assert_eq!(twice.phases(18), [5, 4, 5, 4]);
    assert!(twice.fits(18).is_ok());
    let error = twice.fits(17).unwrap_err();
    assert!(error.message().starts_with("full_ft_max_steps_per_iteration: "), "{error}");
    assert_eq!(epochs(3, 10).phases(130), [30, 100]);
    assert!(epochs(3, 10).fits(131).is_ok());
    for total in 2..40 {
        for config in [epochs(1, 2), Config { n_ft_iterations: 3, ..epochs(5, 1) }] {
            let phases = config.phases(total);
            assert_eq!(phases.iter().sum::<u64>(), total, "{phases:?}");
        }
    }
    let least = Config { sparse_ft_min_steps_per_iteration: Some(60), ..epochs(1, 1) };
    assert_eq!(least.phases(100), [40, 60]);
    let random = Config { sparse_ft_method: FtMethod::Random, ..Config::default() };
    assert_eq!(random.phases(7), [7]);
}

#[test]
fn a_share_is_of_what_may_be_masked() {
    assert_eq!(Config::default().entries(12_345).unwrap(), 123);
    assert_eq!(Config { ft_params_num: Some(40), ..Config::default() }.entries(264).unwrap(), 40);
    assert!(Config { ft_params_num: Some(265), ..Config::default() }.entries(264).is_err());
    assert!(Config { n_ft_iterations: 4, ft_params_num: Some(3), ..Config::default() }.entries(264).is_err());
}

#[test]
fn each_refusal_names_its_option() {
    let refused = |config: Config| config.validate().unwrap_err().message().split(':').next().unwrap().to_owned();
    assert_eq!(refused(Config::default()), "full_ft_max_steps_per_iteration");
    assert_eq!(refused(Config { full_ft_min_steps_per_iteration: Some(9), ..steps(8, 8) }), "full_ft_min_steps_per_iteration");
    assert_eq!(refused(Config { full_l1_reg: f64::NAN, ..steps(8, 8) }), "full_l1_reg");
    assert_eq!(refused(steps(0, 8)), "full_ft_max_steps_per_iteration");
}
