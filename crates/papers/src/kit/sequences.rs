//! The digits as a sequence of five tasks of two, and a vision transformer that has never been told a digit's name.

use pleach_base::Result;
use pleach_base::rng::Key;
use pleach_nn::HeadKind;
use tch::{Device, Kind, Tensor};

use super::course::Part;
use super::{Data, Recipe, StandIn, Tiny, adapter_of, digits, fit, vit};

/// Ways to turn and mirror an image.
const WAYS: i64 = 8;

/// The images turned and mirrored in all ways, each labelled with the way.
fn turned(data: &Data) -> Data {
    let way = |way: i64| {
        let x = data.x.rot90(way % 4, [2, 3]);
        if way < 4 { x } else { x.flip([3]) }
    };
    let x: Vec<_> = (0..WAYS).map(way).collect();
    let y: Vec<_> = (0..WAYS).map(|way| data.y.full_like(way as f64)).collect();
    Data::new(Tensor::cat(&x, 0).contiguous(), Tensor::cat(&y, 0).to_kind(Kind::Int64))
}

/// A vision transformer of width 64 with two blocks, pretrained to tell in which way a digit is turned and mirrored, with a
/// new head of ten classes.
///
/// # Errors
/// Those of training.
pub fn pretrained(key: Key, steps: u64, device: Device) -> Result<Tiny> {
    let before = Tiny::draw(&vit(64, 2, (1, 8, 2), WAYS as usize), None, key.named("model"), device)?;
    let whole = adapter_of(&*before.model, std::sync::Arc::new(StandIn::whole()), key)?;
    fit(&*before.model, &whole, &Recipe::new(steps, 64, 2e-3), &turned(&digits::load(device)?), key.named("ways"))?;
    before.trained_below(&whole, HeadKind::ImageClassification, Some(10))
}

/// Five tasks of two digits each; a fifth of the rows is for tests.
///
/// # Errors
/// As [`digits::load`].
pub fn tasks(key: Key, device: Device) -> Result<Vec<Part>> {
    let (test, train) = digits::load(device)?.per_class(key.named("test"), 36);
    let of = |data: &Data, first: i64| {
        let two = data.only(&[first, first + 1]);
        Data::new(two.x, two.y + first)
    };
    Ok((0..5).map(|task| Part { train: of(&train, 2 * task), test: of(&test, 2 * task) }).collect())
}
