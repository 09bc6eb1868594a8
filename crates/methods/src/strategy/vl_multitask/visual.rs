//! The embedding of visual features: `norm(F f) + norm(P (x1, x2, y1, y2, area)) + order(image) + order(object)`, with one
//! normalisation a part, or one of the sum.
//!
//! Order of an object counts its table down from the last row, which is the word table's.

use tch::{Kind, Tensor};

/// An affine map with or without a normalisation behind it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) weight: Tensor, // [d, in]
    pub(crate) bias: Tensor,   // [d]
    pub(crate) norm: Option<[Tensor; 2]>,
}

/// Visual features to hidden states.
#[derive(Debug)]
pub(crate) struct Visual {
    pub(crate) features: Part,
    pub(crate) positions: Part,
    /// Tables of images and of objects.
    pub(crate) orders: Option<[Tensor; 2]>,
    /// The normalisation of the sum.
    pub(crate) norm: Option<[Tensor; 2]>,
}

const EPS: f64 = 1e-5;

fn normed(x: &Tensor, norm: Option<&[Tensor; 2]>) -> Tensor {
    match norm {
        Some([weight, bias]) => x.layer_norm(weight.size(), Some(weight), Some(bias), EPS, false),
        None => x.shallow_clone(),
    }
}

impl Part {
    fn run(&self, x: &Tensor) -> Tensor {
        normed(&x.linear(&self.weight, Some(&self.bias)), self.norm.as_ref())
    }
}

/// `[.., 4]` boxes `(x1, x2, y1, y2)` with their areas: `[.., 5]`.
fn with_area(boxes: &Tensor) -> Tensor {
    let side = |from: i64| boxes.select(-1, from + 1) - boxes.select(-1, from);
    Tensor::cat(&[boxes.shallow_clone(), (side(2) * side(0)).unsqueeze(-1)], -1)
}

impl Visual {
    /// Features `[b, n, feat]`, boxes `[b, n, 4]`, numbers of images `[b, n]`: `[b, n, d]`.
    pub(crate) fn run(&self, features: &Tensor, boxes: &Tensor, images: Option<&Tensor>) -> Tensor {
        let mut sum = self.features.run(features) + self.positions.run(&with_area(boxes));
        if let Some([image_table, object_table]) = &self.orders {
            let objects = features.size()[1];
            let zeros = || Tensor::zeros([1, objects], (Kind::Int64, features.device()));
            let images = images.map_or_else(zeros, Tensor::shallow_clone);
            let down = Tensor::arange(objects, (Kind::Int64, features.device()));
            let down = down.g_mul_scalar(-1) + (object_table.size()[0] - 1);
            sum = sum + look_up(image_table, &images) + look_up(object_table, &down);
        }
        normed(&sum, self.norm.as_ref())
    }
}

fn look_up(table: &Tensor, ids: &Tensor) -> Tensor {
    let mut size = ids.size();
    size.push(table.size()[1]);
    table.index_select(0, &ids.reshape([-1])).reshape(size)
}
