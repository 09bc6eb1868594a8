//! What configured backbones have alike, what loaded ones do, and what operations at one site do.

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

/// Within the implementation of an operation at one site: `load` from its specification, and `visit`.
#[cfg(feature = "torch")]
macro_rules! at_site {
    ($spec:ty) => {
        pub(crate) fn load(
            spec: $spec,
            sites: &$crate::site::Sites,
            weights: &$crate::run::Weights<'_>,
        ) -> pleach_base::Result<Self> {
            Ok(Self { spec, weights: weights.of(&sites[spec.site])? })
        }

        pub(crate) fn visit<'a>(&'a self, see: &mut dyn FnMut($crate::site::SiteId, &'a $crate::run::OpWeights)) {
            see(self.spec.site, &self.weights);
        }
    };
}
#[cfg(feature = "torch")]
pub(super) use at_site;
