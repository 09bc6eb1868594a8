//! Page 2, SNNK: an adapter, or a layer alone, with the readout by least squares where targets were recorded.

use pleach_base::Result;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::recording::{Recording, wrong};
use super::training::gradient;
use super::{Compared, Page, Train};
use crate::adapter::Options;
use crate::adapter::snnk::closed_form::Normal;
use crate::adapter::snnk::draws::orthonormal;
use crate::adapter::snnk::features::{Features, Numbers};
use crate::adapter::snnk::run::{Behind, Snnk};
use crate::adapter::snnk::{Config, Kernel};
use crate::options::typed;

pub(super) const PAGE: Page = Page { number: 2, tolerances: &["closed_form_abs", "closed_form_rel"], repeat };

/// The options of the case that are not the adapter's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Around {
    ridge: Option<f64>,
    bias: Option<bool>,
}

/// A layer, or an adapter with one.
enum Subject {
    Adapter(Snnk),
    Layer(Features, Numbers),
}

struct Case<'a> {
    recording: &'a Recording,
    config: Config,
    around: Around,
    subject: Subject,
    /// Trained tensors by their names in the recording.
    leaves: Vec<(String, Tensor)>,
}

fn repeat(recording: &Recording, _: &dyn Train, compared: &mut Compared) -> Result<()> {
    if recording.kind != "module" {
        return Err(wrong(format!("kind: page 2 has no {}", recording.kind)));
    }
    let case = Case::new(recording)?;
    case.initial(compared)?;
    case.module(compared)?;
    case.closed_form(compared)?;
    compared.check_used(recording);
    Ok(())
}

impl<'a> Case<'a> {
    fn new(recording: &'a Recording) -> Result<Self> {
        let (around, rest): (Around, Map<String, Value>) = recording.split(&["ridge", "bias"])?;
        let config: Config = typed(&rest, "config", &[])?;
        config.validate()?;
        let leaves: Vec<_> = recording.under("param.").map(str::to_owned).collect();
        let leaf = |name: String| Ok((name.clone(), recording.leaf(&format!("param.{name}"))?));
        let leaves = leaves.into_iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let find = |name: &str| leaves.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor.shallow_clone());
        let get = |name: &str| find(name).ok_or_else(|| wrong(format!("param.{name} is missing")));
        let y = match config.kernel {
            Kernel::Relu => Numbers { re: get("Y")?, im: None },
            _ => Numbers { re: get("Y.re")?, im: Some(get("Y.im")?) },
        };
        let features = features(recording, &config)?;
        let behind = match (find("s"), find("up.weight")) {
            (Some(scale), None) => Some(Behind::Scale(scale)),
            (None, Some(up)) => Some(Behind::Up(up, get("up.bias")?)),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(wrong("param.s and param.up.weight exclude each other")),
        };
        let subject = match behind {
            None => Subject::Layer(features, y),
            Some(behind) => {
                let norm = if config.ln_before { Some([get("ln.weight")?, get("ln.bias")?]) } else { None };
                Subject::Adapter(Snnk { norm, features, y, behind })
            }
        };
        Ok(Self { recording, config, around, subject, leaves })
    }

    fn features(&self) -> &Features {
        match &self.subject {
            Subject::Adapter(adapter) => &adapter.features,
            Subject::Layer(features, _) => features,
        }
    }

    /// What the trained matrix begins as.
    fn initial(&self, compared: &mut Compared) -> Result<()> {
        let Some(weights) = self.recording.find("input.W0") else { return Ok(()) };
        let bias = self.recording.find("input.b0");
        if self.around.bias.is_some_and(|bias_is_on| bias_is_on != bias.is_some()) {
            return Err(wrong("config.bias: input.b0 says otherwise"));
        }
        let psi = self.features().psi(&weights, bias.as_ref());
        let x = self.recording.get("input.x")?;
        if let Some(im) = &psi.im {
            compared.if_recorded("init.Y.re", || Ok(psi.re.shallow_clone()))?;
            compared.if_recorded("init.Y.im", || Ok(im.shallow_clone()))?;
            compared.if_recorded("exact", || Ok(self.features().exact(&x.linear(&weights, bias.as_ref()))))?;
        } else {
            compared.if_recorded("init.Y", || Ok(psi.re.shallow_clone()))?;
        }
        compared.if_recorded("init.output", || Ok(self.features().phi(&x).times(&psi)))
    }

    fn module(&self, compared: &mut Compared) -> Result<()> {
        let x = self.recording.leaf("input.x")?;
        let (inner, output) = match &self.subject {
            Subject::Adapter(adapter) => (adapter.before(&x), adapter.adapt(&x)),
            Subject::Layer(features, y) => (x.shallow_clone(), features.phi(&x).times(y)),
        };
        if !self.features().fits(&inner) {
            return Err(wrong("config.normalize: features of input.x are beyond float32"));
        }
        // Features for the closed form were recorded in float64.
        let kind = self.recording.find("expected.phi").map_or(Kind::Float, |phi| phi.kind());
        let phi = self.features().phi(&inner.to_kind(kind));
        match &phi.im {
            None => compared.if_recorded("phi", || Ok(phi.re.shallow_clone()))?,
            Some(im) => {
                compared.if_recorded("phi.re", || Ok(phi.re.to_kind(Kind::Float)))?;
                compared.if_recorded("phi.im", || Ok(im.to_kind(Kind::Float)))?;
            }
        }
        compared.tensor("output", &output)?;
        (&output * self.recording.get("input.cotangent")?).sum(output.kind()).backward();
        compared.if_recorded("grad.input", || Ok(gradient(&x)))?;
        for (name, leaf) in &self.leaves {
            compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }

    /// The readout of the bundled head, in float64.
    fn closed_form(&self, compared: &mut Compared) -> Result<()> {
        let Some(target) = self.recording.find("input.target") else {
            return match self.around.ridge {
                Some(_) => Err(wrong("config.ridge: there is no input.target")),
                None => Ok(()),
            };
        };
        let ridge = self.around.ridge.ok_or_else(|| wrong("config.ridge is missing"))?;
        if self.config.kernel != Kernel::Relu {
            return Err(wrong("config.kernel: a readout by least squares is of real features"));
        }
        let x = self.recording.get("input.x")?.to_kind(Kind::Double);
        let phi = self.features().phi(&x).re;
        let solution = Normal::of(&phi, &target).solve(ridge)?;
        compared.to("closed_form", &solution, "closed_form_abs", "closed_form_rel")?;
        if compared.wants("closed_form_prediction") {
            let predicted = phi.matmul(&solution);
            compared.to("closed_form_prediction", &predicted, "closed_form_abs", "closed_form_rel")?;
        }
        Ok(())
    }
}

/// The recorded draws. Orthogonal rows are made here from what was drawn for them.
fn features(recording: &Recording, config: &Config) -> Result<Features> {
    let recorded = recording.get("buffer.G")?;
    let [m, d] = recorded.size()[..] else { return Err(wrong("buffer.G has not two axes")) };
    if m != i64::from(config.num_rfs) {
        return Err(wrong(format!("config.num_rfs: buffer.G has {m} rows")));
    }
    let k = if config.kernel == Kernel::Relu { None } else { Some(recording.get("buffer.k")?) };
    if !config.orthogonal {
        return Features::new(config, recorded, k);
    }
    let mut rows = Vec::new();
    for block in 0..(m + d - 1) / d {
        let drawn = recording.get(&format!("input.draw.block{block}"))?.to_kind(Kind::Double);
        let columns = (0..d.min(m - block * d)).map(|j| Vec::<f64>::try_from(drawn.select(1, j)));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>();
        let columns = columns.map_err(|error| wrong(format!("input.draw.block{block}")).caused_by(error))?;
        rows.extend(orthonormal(columns).into_iter().flatten());
    }
    let norms = recording.get("input.draw.norms")?.to_kind(Kind::Double);
    let lengths = norms.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Double).sqrt();
    let g = Tensor::from_slice(&rows).reshape([m, d]) * lengths;
    Features::new(config, g.to_kind(recorded.kind()), k)
}
