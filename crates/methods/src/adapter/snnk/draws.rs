//! What an SNNK layer draws once and keeps: its random matrix, its frequencies, and the weights that it begins with.

use pleach_base::rng::Key;

use super::options::{Config, InitWeights};

/// The key of the draws of the layer at a site.
pub(crate) fn key(config: &Config, path: &str) -> Key {
    Key::seed(config.seed).named("snnk").named(path)
}

/// The random matrix `[m, d]`: rows are independent and normal, or orthogonal with the lengths of such rows.
pub(crate) fn projection(config: &Config, key: Key, d: usize) -> Vec<f32> {
    let m = config.num_rfs as usize;
    let mut rows = key.named("projection").rng();
    let plain: Vec<f32> = (0..m * d).map(|_| rows.normal()).collect();
    if !config.orthogonal {
        return plain;
    }
    let lengths = plain.chunks(d).map(|row| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt());
    let blocks = (0..m.div_ceil(d)).flat_map(|block| {
        let mut draws = key.named("block").with(block as u64).rng();
        let columns = d.min(m - block * d);
        let columns = (0..columns).map(|_| (0..d).map(|_| f64::from(draws.normal())).collect());
        uniform(columns.collect())
    });
    let scale = |(row, length): (Vec<f64>, f64)| row.into_iter().map(move |value| (value * length) as f32);
    blocks.zip(lengths).flat_map(scale).collect()
}

/// The same directions with signs by which each is uniform over the sphere: those along what they were made of. LAPACK's
/// never point up in their first place, which a kernel of rectified features would see.
fn uniform(columns: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let rows = orthonormal(columns.clone());
    let turned = |(mut row, column): (Vec<f64>, Vec<f64>)| {
        if dot(&row, &column) < 0.0 {
            row.iter_mut().for_each(|value| *value = -*value);
        }
        row
    };
    rows.into_iter().zip(columns).map(turned).collect()
}

/// The first columns of `Q` of the factorisation `Q R` of a matrix given by as many columns, by reflections; signs are
/// those of LAPACK's `geqrf`.
pub(crate) fn orthonormal(mut columns: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut reflections: Vec<Option<Vec<f64>>> = Vec::with_capacity(columns.len());
    for j in 0..columns.len() {
        let mut v = columns[j][j..].to_vec();
        if v[1..].iter().all(|value| *value == 0.0) {
            reflections.push(None);
            continue;
        }
        let length = v.iter().map(|value| value * value).sum::<f64>().sqrt();
        v[0] += v[0].signum() * length;
        columns[j..].iter_mut().for_each(|column| reflect(&v, &mut column[j..]));
        reflections.push(Some(v));
    }
    let unit = |j: usize| {
        let mut q = vec![0.0; columns[j].len()];
        q[j] = 1.0;
        for (i, v) in reflections[..=j].iter().enumerate().rev() {
            if let Some(v) = v {
                reflect(v, &mut q[i..]);
            }
        }
        q
    };
    (0..columns.len()).map(unit).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `x -= 2 v (v.x) / (v.v)`.
fn reflect(v: &[f64], x: &mut [f64]) {
    let by = 2.0 * dot(v, x) / dot(v, v);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= by * v);
}

/// The frequencies of a Fourier kernel: by the heights of its waves, with either sign.
pub(crate) fn frequencies(config: &Config, key: Key) -> Vec<f32> {
    let waves = config.waves();
    let all: f64 = waves.iter().map(|wave| wave.mass()).sum();
    let mut draws = key.named("frequencies").rng();
    let mut draw = || {
        let mut left = f64::from(draws.uniform()) * all;
        let drawn = waves.iter().filter(|wave| wave.mass() > 0.0).find(|wave| {
            left -= wave.mass();
            left < 0.0
        });
        let k = drawn.or(waves.last()).map_or(0.0, |wave| wave.k);
        (if draws.uniform() < 0.5 { -k } else { k }) as f32
    };
    (0..config.num_rfs).map(|_| draw()).collect()
}

/// The weights `[out, d]` that a layer begins with, by the key of the tensor that they become.
pub(crate) fn weights(config: &Config, key: Key, out: usize, d: usize) -> Vec<f32> {
    let init = match config.init_weights {
        InitWeights::Mam => crate::adapter::common::usual_init(d),
        InitWeights::Bert => pleach_nn::Init::Normal { std: 0.02 },
    };
    init.draw(key.named("weights"), out * d).unwrap_or_default()
}
