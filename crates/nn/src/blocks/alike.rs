//! What configured backbones have alike, and what loaded ones do: their fields, handed out.

/// Within `impl BackboneConfig`: the fields `info`, `sites` and `tensors`, and the loaded form `imp::$loaded`.
macro_rules! described {
    ($loaded:ident) => {
        fn info(&self) -> &$crate::backbone::ModelInfo {
            &self.info
        }

        fn sites(&self) -> &$crate::site::Sites {
            &self.sites
        }

        fn tensors(&self) -> &[$crate::backbone::TensorInfo] {
            &self.tensors
        }

        #[cfg(feature = "torch")]
        fn build(
            &self,
            dir: &$crate::ModelDir,
            device: tch::Device,
            precision: $crate::Precision,
        ) -> pleach_base::Result<Box<dyn $crate::Backbone>> {
            Ok(Box::new(imp::$loaded::load(self, dir, device, precision)?))
        }
    };
}
pub(super) use described;

/// Within `impl Backbone`: the fields `config`, `weights` and `device`.
#[cfg(feature = "torch")]
macro_rules! kept {
    () => {
        fn config(&self) -> &dyn $crate::backbone::BackboneConfig {
            &self.config
        }

        fn weights(&self, site: $crate::site::SiteId) -> Option<&$crate::run::OpWeights> {
            self.weights.get(&site)
        }

        fn device(&self) -> tch::Device {
            self.device
        }
    };
}
#[cfg(feature = "torch")]
pub(super) use kept;
