use super::*;
use crate::site::{Dims, Part, SiteWeight, WeightLayout};

fn sites() -> Sites {
    let mut sites = Sites::default();
    let mut add = |path: String, role: Role| {
        let weight = (!path.contains('@')).then(|| SiteWeight {
            name: format!("{path}.weight"),
            shape: vec![2, 2],
            layout: WeightLayout::OutIn,
        });
        let (part, block, bias) = (Part::Other, None, None);
        sites.push(Site {
            id: SiteId(0),
            path,
            role,
            part,
            block,
            dims: Dims::default(),
            weight,
            bias,
            scale: 1.0,
            runs: true,
        });
    };
    add("bert.embeddings.word_embeddings".into(), Role::Embed);
    for i in [0, 1, 10] {
        for name in ["attention.self.query", "attention.output.dense", "output.dense"] {
            add(format!("bert.encoder.layer.{i}.{name}"), Role::Linear);
        }
        add(format!("bert.encoder.layer.{i}.output@sublayer"), Role::SublayerOut);
        add(format!("bert.encoder.layer.{i}.output.LayerNorm"), Role::Norm);
    }
    add("bert.pooler.dense".into(), Role::Linear);
    add("classifier".into(), Role::Head);
    sites
}

struct Ask {
    modules: Modules,
    exclude: Option<Modules>,
    saved: Vec<String>,
    layers: Option<Indices>,
    pattern: Option<Patterns>,
}

fn list(names: &[&str]) -> Modules {
    Modules::List(names.iter().map(|name| (*name).to_owned()).collect())
}

fn text(text: &str) -> Modules {
    Modules::Regex(text.to_owned())
}

fn ask(modules: Modules) -> Ask {
    Ask { modules, exclude: None, saved: Vec::new(), layers: None, pattern: None }
}

impl Ask {
    fn paths(&self) -> Result<Vec<String>> {
        let sites = sites();
        let target = Target {
            modules: &self.modules,
            exclude: self.exclude.as_ref(),
            saved: &self.saved,
            layers: self.layers.as_ref(),
            pattern: self.pattern.as_ref(),
            roles: &[Role::Linear, Role::Head],
        };
        let short = |id: SiteId| sites[id].path.trim_start_matches("bert.encoder.layer.").to_owned();
        Ok(target.select(&sites)?.into_iter().map(short).collect())
    }
}

#[test]
fn a_list_matches_whole_paths_and_whole_last_parts() {
    let query = ["0.attention.self.query", "1.attention.self.query", "10.attention.self.query"];
    assert_eq!(ask(list(&["query"])).paths().unwrap(), query);
    assert_eq!(ask(list(&["self.query"])).paths().unwrap(), query);
    assert!(ask(list(&["uery"])).paths().is_err(), "a suffix begins at a dot");
    assert_eq!(ask(list(&["bert.pooler.dense", "classifier"])).paths().unwrap(), ["bert.pooler.dense", "classifier"]);
    assert_eq!(ask(list(&["attention.output.dense"])).paths().unwrap().len(), 3);
    assert_eq!(ask(list(&["dense"])).paths().unwrap().len(), 7);
}

#[test]
fn a_text_matches_the_whole_path() {
    assert_eq!(ask(text(r".*\.1\..*query")).paths().unwrap(), ["1.attention.self.query"]);
    assert!(ask(text("query")).paths().is_err(), "not a part of it");
    assert_eq!(ask(text(r"(?!.*layer\.1).*query")).paths().unwrap(), ["0.attention.self.query"], "look-ahead works");
    let error = ask(text("(")).paths().unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (code::METHOD_CONFIG, "target_modules: `(` is not a regular expression")
    );
}

#[test]
fn all_linear_leaves_the_head_out() {
    let found = ask(text("all-linear")).paths().unwrap();
    assert_eq!(found.len(), 10);
    assert!(!found.contains(&"classifier".to_owned()));
    assert_eq!(ask(text("All-Linear")).paths().unwrap(), found);
}

#[test]
fn excluded_and_saved_modules_are_no_targets() {
    let mut asked = ask(text("all-linear"));
    asked.exclude = Some(list(&["output.dense"]));
    assert_eq!(asked.paths().unwrap().len(), 4);
    asked.exclude = Some(text(r".*\.output\.dense"));
    assert_eq!(asked.paths().unwrap().len(), 4);
    asked.saved = vec!["pooler".to_owned()];
    assert_eq!(asked.paths().unwrap().len(), 3, "a saved module takes those below it along");
}

#[test]
fn blocks_are_chosen_by_number() {
    let mut asked = ask(list(&["query"]));
    asked.layers = Some(Indices::Many(vec![1, 10]));
    assert_eq!(asked.paths().unwrap(), ["1.attention.self.query", "10.attention.self.query"]);
    asked.layers = Some(Indices::One(0));
    asked.pattern = Some(Patterns::One("layer".to_owned()));
    assert_eq!(asked.paths().unwrap(), ["0.attention.self.query"]);
    asked.pattern = Some(Patterns::Many(vec!["blocks".to_owned()]));
    assert_eq!(asked.paths().unwrap_err().code(), code::TARGET_NOTHING);
    asked.layers = None;
    assert_eq!(asked.paths().unwrap_err().code(), code::METHOD_CONFIG, "a pattern alone");
    let mut whole = ask(list(&["bert.encoder.layer.0.attention.self.query", "output.dense"]));
    whole.layers = Some(Indices::One(1));
    let expected = ["0.attention.self.query", "1.attention.output.dense", "1.output.dense"];
    assert_eq!(whole.paths().unwrap(), expected, "a path given in full is not asked for its number");
    let mut expression = ask(text(".*query"));
    expression.layers = Some(Indices::One(1));
    assert_eq!(expression.paths().unwrap_err().code(), code::METHOD_CONFIG);
}

#[test]
fn nothing_lists_the_nearest_and_a_wrong_role_is_named() {
    let error = ask(list(&["quary"])).paths().unwrap_err();
    assert_eq!(error.code(), code::TARGET_NOTHING);
    assert_eq!(error.message(), "target_modules: [`quary`] matches no site of the model");
    assert!(error.hint_text().unwrap().starts_with("nearest: query"), "{error:?}");
    let error = ask(list(&["LayerNorm"])).paths().unwrap_err();
    assert_eq!(error.code(), code::METHOD_CONFIG);
    assert!(error.message().contains("is of kind norm, this method acts on linear, head"), "{error}");
}

#[test]
fn names_are_as_short_as_they_can_be() {
    let sites = sites();
    let of = |names: &[&str]| {
        ask(list(names)).paths().map(|_| ()).and_then(|()| {
            let modules = list(names);
            let target = Target {
                modules: &modules,
                exclude: None,
                saved: &[],
                layers: None,
                pattern: None,
                roles: &[Role::Linear],
            };
            target.select(&sites)
        })
    };
    assert_eq!(sites.shortest_names(&of(&["query"]).unwrap()), ["query"]);
    let names = sites.shortest_names(&of(&["query", "bert.pooler.dense"]).unwrap());
    assert_eq!(names, ["pooler.dense", "query"], "`dense` alone would select too much");
    let output = of(&["output.dense"]).unwrap();
    assert_eq!(sites.shortest_names(&output), ["output.dense"], "two modules of every block");
    assert_eq!(of(&["pooler.dense", "query"]).unwrap().len(), 4);
}

#[test]
fn saved_modules_take_what_is_below_them() {
    let sites = sites();
    let paths = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        sites.saved_whole(&names).into_iter().map(|id| sites[id].path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(paths(&["pooler", "classifier"]), ["bert.pooler.dense", "classifier"]);
    assert_eq!(paths(&["score"]), Vec::<String>::new());
    assert_eq!(paths(&["word_embeddings"]), ["bert.embeddings.word_embeddings"]);
}

#[test]
fn pattern_values_match_last_parts_as_expressions() {
    let table = [("query".to_owned(), 4), (r"layer\.1\..*".to_owned(), 16), ("den".to_owned(), 1)];
    let value = |path: &str| Sites::pattern_value(path, table.iter().map(|(k, v)| (k, *v)), "rank_pattern").unwrap();
    assert_eq!(value("bert.encoder.layer.1.attention.self.query"), Some(4), "the first that fits");
    assert_eq!(value("bert.encoder.layer.1.output.dense"), Some(16));
    assert_eq!(value("bert.encoder.layer.0.output.dense"), None);
    assert_eq!(value("query"), Some(4));
}
