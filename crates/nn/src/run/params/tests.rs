use super::*;

fn tree() -> ParamTree {
    let mut tree = ParamTree::default();
    let value = |from: i64, shape: &[i64]| {
        (Tensor::arange(shape.iter().product::<i64>(), tch::kind::FLOAT_CPU) + from).reshape(shape)
    };
    // Not in alphabetical order, as plans are not.
    tree.insert("z.weight", &value(0, &[2, 3])).unwrap();
    tree.insert("a.weight", &value(6, &[4])).unwrap();
    tree.insert("m.weight", &value(10, &[1, 2])).unwrap();
    tree
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.detach().reshape([-1]).try_into().unwrap()
}

#[test]
fn order_is_that_of_insertion() {
    let tree = tree();
    assert_eq!(tree.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["z.weight", "a.weight", "m.weight"]);
    assert_eq!((tree.len(), tree.numel()), (3, 12));
    assert_eq!(values(&tree.flatten()), (0..12).map(|i| i as f32).collect::<Vec<_>>());
    assert!(tree.get("a.weight").unwrap().requires_grad() && tree.get("b").is_none());
    let mut twice = tree;
    assert!(twice.insert("a.weight", &Tensor::zeros([1], tch::kind::FLOAT_CPU)).is_err());
}

#[test]
fn flatten_and_unflatten_are_inverse_in_place() {
    let tree = tree();
    let (before, held) = (tree.digest(), tree.get("a.weight").unwrap().shallow_clone());
    let flat = tree.flatten();
    tree.unflatten(&(&flat * 2)).unwrap();
    assert_eq!(values(&held), [12.0, 14.0, 16.0, 18.0], "the same memory");
    assert!(held.requires_grad() && held.is_leaf());
    assert_ne!(tree.digest(), before);
    tree.unflatten(&flat).unwrap();
    assert_eq!(tree.digest(), before);
    assert!(tree.unflatten(&flat.narrow(0, 0, 11)).is_err());
}

#[test]
fn missing_gradients_are_zeros_in_their_place() {
    let tree = tree();
    (tree.get("m.weight").unwrap() * 3.0).sum(Kind::Float).backward();
    assert_eq!(values(&tree.flatten_grads()), [vec![0.0; 10], vec![3.0; 2]].concat());
    tree.zero_grads();
    assert_eq!(values(&tree.flatten_grads()), vec![0.0; 12]);
}

#[test]
fn an_alias_shares_values_but_not_gradients() {
    let tree = tree();
    let alias = tree.alias();
    (alias.get("a.weight").unwrap() * 2.0).sum(Kind::Float).backward();
    assert!(!tree.get("a.weight").unwrap().grad().defined() && alias.get("a.weight").unwrap().grad().defined());
    tree.unflatten(&(tree.flatten() + 1.0)).unwrap();
    assert_eq!(alias.digest(), tree.digest());
}

#[test]
fn a_digest_knows_names_shapes_and_every_bit() {
    let one = |name: &str, value: &Tensor| {
        let mut tree = ParamTree::default();
        tree.insert(name, value).unwrap();
        tree.digest()
    };
    let zero = Tensor::zeros([2, 2], tch::kind::FLOAT_CPU);
    assert_ne!(one("a", &zero), one("b", &zero));
    assert_ne!(one("a", &zero), one("a", &zero.reshape([4])));
    assert_ne!(one("a", &zero), one("a", &(&zero * -1.0)), "minus zero is another bit");
    assert_eq!(one("a", &zero), one("a", &zero.copy()));
}
