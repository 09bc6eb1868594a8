//! The two nets of page 59.

use indexmap::IndexMap;
use pleach_base::Result;
use tch::Tensor;

use super::super::recording::{bad, wrong};
use super::{Case, wide};
use crate::adapter::poly::routing::Skills;

/// The frozen maps, their skills, and the selectors.
pub(super) struct Net<'a> {
    case: &'a Case<'a>,
    maps: IndexMap<String, Map>,
    /// Name in the recording and logits of every selector.
    selectors: Vec<(String, Tensor)>,
}

struct Map {
    weight: Tensor,
    bias: Option<Tensor>,
    skills: Option<Skills>,
    /// Number of its selector.
    selector: usize,
}

/// What is added at a map: its name, its skills, its input.
pub(super) type Added<'a> = dyn FnMut(&str, &Skills, &Tensor) -> Result<Tensor> + 'a;

impl<'a> Net<'a> {
    /// With leaves of its own.
    pub(super) fn new(case: &'a Case<'a>) -> Result<Self> {
        let recording = case.recording;
        let leaf = |name: &str| Ok(wide(&recording.get(&format!("param.{name}"))?).copy().set_requires_grad(true));
        let names = recording.under("frozen.").filter_map(|name| name.strip_suffix(".weight"));
        let (mut maps, mut selectors): (IndexMap<String, Map>, Vec<(String, Tensor)>) = Default::default();
        if let Some(lists) = &case.around.selectors {
            for index in 0..lists.len() {
                let name = format!("selector.{index}.module_logits");
                selectors.push((name.clone(), leaf(&name)?));
            }
        }
        for name in names {
            let adapted = recording.under("param.").any(|param| param == format!("{name}.lora_a"));
            let mut selector = 0;
            if adapted {
                selector = match &case.around.selectors {
                    Some(lists) => lists.iter().position(|list| list.iter().any(|map| map == name)),
                    None => {
                        let logits = format!("{name}.module_logits");
                        selectors.push((logits.clone(), leaf(&logits)?));
                        selectors.len().checked_sub(1)
                    }
                }
                .ok_or_else(|| wrong(format!("config.selectors: none has {name}")))?;
            }
            let skills = || {
                let (a, b) = (leaf(&format!("{name}.lora_a"))?, leaf(&format!("{name}.lora_b"))?);
                Ok::<_, pleach_base::Error>(Skills { a, b, scale: case.config.scaling() })
            };
            let weight = wide(&recording.get(&format!("frozen.{name}.weight"))?);
            let bias = recording.find(&format!("frozen.{name}.bias")).map(|bias| wide(&bias));
            let skills = if adapted { Some(skills()?) } else { None };
            maps.insert(name.to_owned(), Map { weight, bias, skills, selector });
        }
        Ok(Self { case, maps, selectors })
    }

    /// The maps that have skills.
    pub(super) fn adapted(&self) -> impl Iterator<Item = (&str, &Skills)> {
        self.maps.iter().filter_map(|(name, map)| Some((name.as_str(), map.skills.as_ref()?)))
    }

    /// `A` and `B` of every map, by their names in the recording.
    pub(super) fn skills(&self) -> Vec<(String, Tensor)> {
        let both = |(name, skills): (&str, &Skills)| {
            [(format!("{name}.lora_a"), skills.a.shallow_clone()), (format!("{name}.lora_b"), skills.b.shallow_clone())]
        };
        self.adapted().flat_map(both).collect()
    }

    /// The selectors' logits.
    pub(super) fn selectors(&self) -> &[(String, Tensor)] {
        &self.selectors
    }

    /// Puts new logits in place of a selector's.
    pub(super) fn set_selector(&mut self, index: usize, logits: Tensor) {
        self.selectors[index].1 = logits;
    }

    /// All that is trained.
    pub(super) fn leaves(&self) -> Vec<(String, Tensor)> {
        let own = self.selectors.iter().map(|(name, logits)| (name.clone(), logits.shallow_clone()));
        self.skills().into_iter().chain(own).collect()
    }

    /// The logits of the map `name`.
    pub(super) fn logits(&self, name: &str) -> Result<&Tensor> {
        let map = self.map(name)?;
        let found = self.selectors.get(map.selector).map(|(_, logits)| logits);
        found.ok_or_else(|| wrong(format!("{name} has no selector")))
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.maps.get(name).ok_or_else(|| bad(format!("frozen.{name}.weight is missing")))
    }

    fn linear(&self, name: &str, x: &Tensor, added: &mut Added<'_>) -> Result<Tensor> {
        let map = self.map(name)?;
        let y = x.linear(&map.weight, map.bias.as_ref());
        match &map.skills {
            Some(skills) => Ok(y + added(name, skills, x)?),
            None => Ok(y),
        }
    }

    /// The whole net.
    pub(super) fn run(&self, x: &Tensor, added: &mut Added<'_>) -> Result<Tensor> {
        if !self.maps.keys().any(|name| name.contains(".block.")) {
            let inner = self.linear("fc1", x, added)?.tanh();
            return self.linear("fc2", &inner, added);
        }
        let mut x = x.shallow_clone();
        for coder in ["encoder", "decoder"] {
            for block in 0.. {
                let at = format!("{coder}.block.{block}.");
                if !self.maps.keys().any(|name| name.starts_with(&at)) {
                    break;
                }
                for [first, second] in [["layer.0.q", "layer.0.o"], ["layer.1.wi", "layer.1.wo"]] {
                    let inner = self.linear(&format!("{at}{first}"), &x, added)?.tanh();
                    x = &x + self.linear(&format!("{at}{second}"), &inner, added)?;
                }
            }
        }
        Ok(x)
    }

    /// The recording.
    pub(super) fn case(&self) -> &Case<'a> {
        self.case
    }
}
