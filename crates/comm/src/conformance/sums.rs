//! `strict_sum` has the bits of a sum in lane order, whoever holds the lanes.

use pleach_base::code;
use tch::{Kind, Tensor};

use super::{Check, expect, ok};
use crate::{Collective, strict_sum};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "strict_sum has the bits of the sum in lane order", min_world: 1, run: lane_order },
    Check { name: "strict_sum refuses lanes that are missing or held twice", min_world: 1, run: wrong_lanes },
];

/// The same on every rank: values of very different size, so that the order of addition shows in the bits.
fn lane(index: usize, elements: i64, kind: Kind) -> Tensor {
    let values: Vec<f32> = (0..elements)
        .map(|element| {
            let bits = mix(index as u64 * 1_000_003 + element.unsigned_abs());
            let magnitude = 2f32.powi((bits % 24) as i32 - 12);
            ((bits >> 40) as f32 / 8_388_608.0 - 1.0) * magnitude
        })
        .collect();
    // Thirds fill the mantissa of every kind; sums of short fractions would be exact in f64, whatever the order.
    Tensor::from_slice(&values).to_kind(kind) / 3.0
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

fn lane_order(group: &dyn Collective) -> Result<(), String> {
    let world = group.world();
    for (lanes, elements, kind) in [
        (1, 7, Kind::Float),
        (3, 1, Kind::Float),
        (8, 1001, Kind::Float),
        (5, 64, Kind::Double),
        (6, 33, Kind::BFloat16),
    ] {
        let expected = (1..lanes).fold(lane(0, elements, kind), |sum, index| sum + lane(index, elements, kind));
        let backwards = (0..lanes - 1).rev().fold(lane(lanes - 1, elements, kind), |s, i| s + lane(i, elements, kind));
        expect(lanes < 4 || !expected.equal(&backwards), || "these values do not show the order".to_owned())?;
        // Round robin; all on the last rank; blocks, backwards.
        let places: [fn(usize, usize, usize) -> usize; 3] = [
            |lane, _, world| lane % world,
            |_, _, world| world - 1,
            |lane, lanes, world| (lanes - 1 - lane) * world / lanes,
        ];
        for place in places {
            let mine: Vec<(usize, Tensor)> = (0..lanes)
                .rev()
                .filter(|index| place(*index, lanes, world) == group.rank())
                .map(|index| (index, lane(index, elements, kind).to_device(group.device())))
                .collect();
            let sum = ok(strict_sum(group, &mine, lanes, &[elements], kind))?;
            expect(sum.to_device(tch::Device::Cpu).equal(&expected), || {
                format!("{lanes} lanes of {elements} {kind:?}: other bits than in lane order")
            })?;
        }
    }
    Ok(())
}

fn wrong_lanes(group: &dyn Collective) -> Result<(), String> {
    let give = |index, elements| (index, lane(index, elements, Kind::Float).to_device(group.device()));
    let first = group.rank() == 0;
    let cases = [
        // Nobody holds lane 1.
        if first { vec![give(0, 4)] } else { vec![] },
        // Somebody holds lane 0 twice.
        if first { vec![give(0, 4), give(0, 4), give(1, 4)] } else { vec![] },
        // A lane of another length.
        if first { vec![give(0, 4), give(1, 5)] } else { vec![] },
        // A lane that does not exist.
        if first { vec![give(0, 4), give(1, 4), give(2, 4)] } else { vec![] },
    ];
    for (number, lanes) in cases.into_iter().enumerate() {
        let result = strict_sum(group, &lanes, 2, &[4], Kind::Float);
        let code = result.err().map(|error| error.code());
        expect(code == Some(code::COMM_MISMATCH), || format!("case {number}: {code:?}"))?;
    }
    Ok(())
}
