//! Every expected value was drawn by PyTorch 2.11 on a CPU.
#![expect(clippy::excessive_precision, reason = "the digits that were recorded")]

use super::*;

#[test]
fn uniform_draws_are_pytorchs() {
    let drawn = |seed| Mersenne::seed(seed).uniform(4, -0.3, 0.7);
    assert_eq!(drawn(0), [0.196_256_58f32, 0.468_221_78, -0.211_522_58, -0.167_969_52]);
    assert_eq!(drawn(777), [-0.218_084_69f32, 0.191_137_43, 0.103_293_3, 0.085_919_917]);
    assert_eq!(drawn(-5), [0.630_815_1f32, 0.360_724_2, 0.680_768_85, 0.632_409_7], "the low bits of a negative seed");
    let long = Mersenne::seed(777).uniform(1300, -0.3, 0.7);
    let found = [623, 624, 625, 1299].map(|i| long[i]);
    assert_eq!(found, [0.648_827_7f32, 0.335_150_12, 0.460_846_36, 0.125_724_67], "across blocks of the generator");
}

#[test]
fn products_and_sums_are_rounded_once() {
    let drawn = Mersenne::seed(0).uniform(336, -0.327_326_83, 0.327_326_83);
    assert_eq!(drawn[..3], [-0.002_450_637f32, 0.175_592_38, -0.269_404_77]);
    assert_eq!(drawn[5], 0.087_775_104, "rounded twice, these would be neighbours");
}

#[test]
fn bfloat16_draws_are_pytorchs() {
    let drawn = Mersenne::seed(3).uniform_bf16(6, -0.3, 0.7);
    assert_eq!(drawn, [0.113_281_25, 0.292_968_75, 0.671_875, 0.210_937_5, 0.417_968_75, 0.480_468_75]);
    assert_eq!([bf16(1.003_906_25), bf16(1.011_718_75), bf16(-0.3)], [1.0, 1.015_625, -0.300_781_25], "ties to even");
}

#[test]
fn permutations_are_pytorchs() {
    let first = |size, count| Mersenne::seed(777).permutation(size, count);
    assert_eq!(first(1, 5), [0]);
    assert_eq!(first(2, 2), [1, 0]);
    assert_eq!(first(10, 10), [5, 9, 0, 3, 1, 7, 4, 8, 6, 2]);
    let all = first(2048, 2048);
    assert_eq!(all[..5], [103, 1405, 1251, 2031, 803]);
    assert_eq!(all[1000..1003], [1621, 234, 1117]);
    assert_eq!(all.iter().zip(0..).map(|(value, at)| value * at).sum::<u64>(), 2_147_998_933, "the whole of it");
    assert_eq!(first(100_003, 1003)[1000..], [16_044, 15_219, 99_459]);
    assert_eq!(all[..40], first(2048, 40), "a part is the beginning of the whole");
}

#[test]
fn a_few_of_many_are_drawn_at_once() {
    let first = Mersenne::seed(777).permutation(PERMUTATION_END - 1, 5003);
    assert_eq!(first[..3], [11_440_646, 199_500_216, 10_121_607]);
    assert_eq!(first[5000..], [170_082_831, 185_741_936, 20_764_021]);
}
