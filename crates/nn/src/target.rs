//! Which sites a method acts on, by PEFT's rules: `target_modules` (list of names or suffixes, a regular expression,
//! or `all-linear`), `exclude_modules`, `layers_to_transform`, `layers_pattern`, and modules that are saved whole.

use std::collections::BTreeSet;

use fancy_regex::Regex;
use pleach_base::{Result, code, suggest};
use serde::{Deserialize, Serialize};

use crate::site::{Role, Site, SiteId, Sites};

/// `target_modules` or `exclude_modules`: a list of names, or a text that is a regular expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// A regular expression that must match the whole path, or `all-linear`.
    Regex(String),
    /// Paths, or last parts of paths.
    List(Vec<String>),
}

/// `layers_to_transform`: one block or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Indices {
    /// One block.
    One(u32),
    /// Several.
    Many(Vec<u32>),
}

/// `layers_pattern`: names of the module list that holds the blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Patterns {
    /// One name.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The word for every linear map except the output head.
const ALL_LINEAR: &str = "all-linear";

/// A selection of sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// `target_modules`.
    pub modules: &'a Modules,
    /// `exclude_modules`.
    pub exclude: Option<&'a Modules>,
    /// `modules_to_save`: never a target as well.
    pub saved: &'a [String],
    /// `layers_to_transform`.
    pub layers: Option<&'a Indices>,
    /// `layers_pattern`.
    pub pattern: Option<&'a Patterns>,
    /// Roles that the method can act on. Named sites of other roles are refused.
    pub roles: &'a [Role],
}

impl Target<'_> {
    /// The selected sites in order.
    ///
    /// # Errors
    /// `TARGET_NOTHING` with the nearest sites when nothing is selected; `METHOD_CONFIG` for an expression that cannot
    /// be compiled, for layer options that PEFT would refuse, and for a named site of a role the method cannot act on.
    pub fn select(&self, sites: &Sites) -> Result<Vec<SiteId>> {
        self.check_options()?;
        let wanted = Matcher::target(self.modules)?;
        let excluded = self.exclude.map(Matcher::exclude).transpose()?;
        let layer = LayerRule::new(self.layers, self.pattern)?;
        let saved = self.saved.iter().map(|name| saved_rule(name)).collect::<Result<Vec<_>>>()?;
        let mut chosen = Vec::new();
        for site in sites.iter().filter(|site| site.is_module()) {
            let path = &site.path;
            let refused = excluded.as_ref().is_some_and(|rule| rule.matches(site) != Match::No)
                || saved.iter().any(|rule| rule.is_match(path).unwrap_or(false));
            if refused {
                continue;
            }
            match wanted.matches(site) {
                Match::No => continue,
                Match::Suffix if !layer.allows(path) => continue,
                Match::Exact | Match::Suffix | Match::Regex => {}
            }
            if !self.roles.contains(&site.role) {
                return Err(self.wrong_role(site));
            }
            chosen.push(site.id);
        }
        if chosen.is_empty() { Err(self.nothing(sites)) } else { Ok(chosen) }
    }

    fn check_options(&self) -> Result<()> {
        if matches!(self.modules, Modules::Regex(_)) && (self.layers.is_some() || self.pattern.is_some()) {
            return Err(code::METHOD_CONFIG
                .error("layers_to_transform: cannot be given when target_modules is a text")
                .hint("give target_modules as a list, or put the block numbers into the expression"));
        }
        if self.pattern.is_some() && self.layers.is_none() {
            return Err(code::METHOD_CONFIG
                .error("layers_pattern: has no effect without layers_to_transform")
                .hint("add layers_to_transform or remove layers_pattern"));
        }
        Ok(())
    }

    fn wrong_role(&self, site: &Site) -> pleach_base::Error {
        let able: Vec<_> = self.roles.iter().map(ToString::to_string).collect();
        code::METHOD_CONFIG
            .error(format!(
                "target_modules: `{}` is of kind {}, this method acts on {}",
                site.path,
                site.role,
                able.join(", ")
            ))
            .hint("name other modules, or put this one into exclude_modules")
    }

    fn nothing(&self, sites: &Sites) -> pleach_base::Error {
        let paths: Vec<_> = sites
            .iter()
            .filter(|site| site.is_module() && self.roles.contains(&site.role))
            .map(|site| site.path.as_str())
            .collect();
        let last: BTreeSet<_> = paths.iter().filter_map(|path| path.rsplit('.').next()).collect();
        let (asked, words) = match self.modules {
            Modules::Regex(text) => (format!("`{text}`"), vec![text.as_str()]),
            Modules::List(list) => {
                let quoted: Vec<_> = list.iter().map(|name| format!("`{name}`")).collect();
                (format!("[{}]", quoted.join(", ")), list.iter().map(String::as_str).collect())
            }
        };
        let mut near: Vec<&str> = Vec::new();
        for word in words {
            let pool: Vec<_> = if word.contains('.') { paths.clone() } else { last.iter().copied().collect() };
            near.extend(suggest::nearest_few(word, pool, 4));
        }
        near.dedup();
        near.truncate(8);
        code::TARGET_NOTHING.error(format!("target_modules: {asked} matches no site of the model")).hint(
            if near.is_empty() {
                "the model has no site of a kind that this method acts on".to_owned()
            } else {
                format!("nearest: {}", near.join(", "))
            },
        )
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    Exact,
    Suffix,
    Regex,
}

enum Matcher<'a> {
    AllLinear,
    Regex(Box<Regex>),
    List(&'a [String]),
}

impl<'a> Matcher<'a> {
    fn target(modules: &'a Modules) -> Result<Self> {
        match modules {
            Modules::Regex(text) if text.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Self::AllLinear),
            other => Self::new(other, "target_modules"),
        }
    }

    fn exclude(modules: &'a Modules) -> Result<Self> {
        Self::new(modules, "exclude_modules")
    }

    fn new(modules: &'a Modules, field: &str) -> Result<Self> {
        match modules {
            Modules::Regex(text) => Ok(Self::Regex(Box::new(whole(text, field)?))),
            Modules::List(list) => Ok(Self::List(list)),
        }
    }

    fn matches(&self, site: &Site) -> Match {
        let path = site.path.as_str();
        match self {
            Self::AllLinear if matches!(site.role, Role::Linear) => Match::Regex,
            Self::AllLinear => Match::No,
            Self::Regex(regex) if regex.is_match(path).unwrap_or(false) => Match::Regex,
            Self::Regex(_) => Match::No,
            Self::List(list) if list.iter().any(|name| name == path) => Match::Exact,
            Self::List(list) if list.iter().any(|name| is_suffix(path, name)) => Match::Suffix,
            Self::List(_) => Match::No,
        }
    }
}

/// PEFT asks about blocks only where a name matched as a suffix.
enum LayerRule {
    Any,
    Only { numbers: BTreeSet<u32>, rules: Vec<Regex> },
}

impl LayerRule {
    fn new(layers: Option<&Indices>, pattern: Option<&Patterns>) -> Result<Self> {
        let numbers: BTreeSet<u32> = match layers {
            None => return Ok(Self::Any),
            Some(Indices::Many(list)) if list.is_empty() => return Ok(Self::Any),
            Some(Indices::One(one)) => BTreeSet::from([*one]),
            Some(Indices::Many(list)) => list.iter().copied().collect(),
        };
        let names: Vec<&str> = match pattern {
            None => Vec::new(),
            Some(Patterns::One(name)) if name.is_empty() => Vec::new(),
            Some(Patterns::One(name)) => vec![name],
            Some(Patterns::Many(list)) => list.iter().map(String::as_str).collect(),
        };
        let texts = if names.is_empty() {
            vec![r"^.*\.[^.]*\.(\d+)\.".to_owned()]
        } else {
            names.iter().map(|name| format!(r"^.*\.{name}\.(\d+)\.")).collect()
        };
        let rules = texts.iter().map(|text| compile(text, text, "layers_pattern")).collect::<Result<_>>()?;
        Ok(Self::Only { numbers, rules })
    }

    fn allows(&self, path: &str) -> bool {
        let Self::Only { numbers, rules } = self else { return true };
        let found = rules.iter().find_map(|rule| rule.captures(path).ok().flatten());
        let number = found.and_then(|groups| groups.get(1)?.as_str().parse::<u32>().ok());
        number.is_some_and(|number| numbers.contains(&number))
    }
}

fn is_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The ends of a path from a dot on, the shortest first, the path itself last.
fn ends(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('.').map(|(dot, _)| &path[dot + 1..]).chain([path])
}

fn whole(text: &str, field: &str) -> Result<Regex> {
    compile(&format!(r"\A(?:{text})\z"), text, field)
}

fn saved_rule(name: &str) -> Result<Regex> {
    compile(&format!(r"^(?:|.*\.){name}(?:$|\..*)"), name, "modules_to_save")
}

/// `shown` is what the user wrote of it.
fn compile(text: &str, shown: &str, field: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| {
        code::METHOD_CONFIG.error(format!("{field}: `{shown}` is not a regular expression")).caused_by(error)
    })
}

impl Sites {
    /// The sites with weights below modules that PEFT would train whole for these `modules_to_save`: the path of the
    /// module, or of one around it, ends with one of the names.
    #[must_use]
    pub fn saved_whole(&self, names: &[String]) -> Vec<SiteId> {
        let covers = |path: &str| names.iter().any(|name| path.ends_with(name.as_str()));
        let around = |path: &str| {
            let ends = path.match_indices('.').map(|(end, _)| end).chain([path.len()]);
            ends.into_iter().any(|end| covers(&path[..end]))
        };
        self.iter().filter(|site| site.weight.is_some() && around(&site.path)).map(|site| site.id).collect()
    }

    /// The shortest list of names that selects exactly these sites as `target_modules`: for each site the shortest end
    /// of its path, from a dot on, that no other module ends in.
    #[must_use]
    pub fn shortest_names(&self, chosen: &[SiteId]) -> Vec<String> {
        let chosen: BTreeSet<_> = chosen.iter().copied().collect();
        let unwanted: BTreeSet<_> = self
            .iter()
            .filter(|site| site.is_module() && !chosen.contains(&site.id))
            .flat_map(|site| ends(&site.path))
            .collect();
        let shortest = |id: &SiteId| {
            let path = self[*id].path.as_str();
            ends(path).find(|end| !unwanted.contains(end)).unwrap_or(path).to_owned()
        };
        chosen.iter().map(shortest).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether an expression matches a whole path.
    ///
    /// # Errors
    /// `METHOD_CONFIG` naming the `field` when it is not a regular expression.
    pub fn whole_match(path: &str, text: &str, field: &str) -> Result<bool> {
        Ok(whole(text, field)?.is_match(path).unwrap_or(false))
    }

    /// The value of the entry of `rank_pattern` or `alpha_pattern` that fits `path`: the first whose key, as a regular
    /// expression, matches the path or a last part of it.
    ///
    /// # Errors
    /// `METHOD_CONFIG` for a key that is not a regular expression.
    pub fn pattern_value<'m, V>(
        path: &str,
        patterns: impl IntoIterator<Item = (&'m String, V)>,
        field: &str,
    ) -> Result<Option<V>> {
        for (key, value) in patterns {
            let rule = compile(&format!(r"\A(?:(?:.*\.)?(?:{key}))\z"), key, field)?;
            if rule.is_match(path).unwrap_or(false) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
