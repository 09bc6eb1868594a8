//! The embedding of visual features.

use pleach_base::Result;
use tch::Tensor;

use super::super::Compared;
use super::super::training::gradient;
use super::Case;
use super::parts::Leaves;
use crate::strategy::vl_multitask::visual::{Part, Visual};

impl Case<'_> {
    pub(super) fn visual(&self, compared: &mut Compared) -> Result<()> {
        let around = &self.around;
        let normed = around.use_vis_layer_norm.unwrap_or(true);
        let each = around.individual_vis_layer_norm.unwrap_or(true);
        let mut leaves = Leaves::new(self.recording);
        let part = |leaves: &mut Leaves<'_>, name: &str| -> Result<Part> {
            let map = format!("{name}.0");
            let [weight, bias] = leaves.pair(if leaves.has(&format!("{map}.weight")) { &map } else { name })?;
            let norm = if normed && each { Some(leaves.pair(&format!("{name}.1"))?) } else { None };
            Ok(Part { weight, bias, norm })
        };
        let (features, positions) =
            (part(&mut leaves, "feat_embedding")?, part(&mut leaves, "absolute_vis_pos_embedding")?);
        let orders = match around.use_vis_order_embedding.unwrap_or(true) {
            true => {
                let images = leaves.get("img_order_embedding.weight")?;
                Some([images, leaves.get("obj_order_embedding.weight")?])
            }
            false => None,
        };
        let norm = if normed && !each { Some(leaves.pair("layer_norm")?) } else { None };
        let visual = Visual { features, positions, orders, norm };
        let images: Option<Tensor> = self.recording.find("input.img_order_ids");
        let (features, boxes) = (self.recording.get("input.feats")?, self.recording.get("input.pos")?);
        let output = visual.run(&features, &boxes, images.as_ref());
        compared.tensor("output", &output)?;
        self.weighted(&output, "input.cotangent")?.backward();
        for (name, leaf) in leaves.all() {
            compared.if_recorded(&format!("grad.{name}"), || Ok(gradient(leaf)))?;
        }
        Ok(())
    }
}
