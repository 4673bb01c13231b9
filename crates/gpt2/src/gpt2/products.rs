//! The parameters as matrix products read them: as they are, or rounded to bf16; and how such products are computed.
//!
//! Invariant: what [`ProductCasts::views`] returns is rounded from the parameters that it was given, nothing older.
//! Deliberately not here: which products there are (`model`, `head`).

use ckptd_core::Result;
use ckptd_core::config::ComputePrecision;
use ckptd_interop::gpt2_config::Gpt2Config;
use tch::{Device, Kind, TchError, Tensor};

use super::places::{WTE, is_product_operand, unembedding_index};
use crate::torch::TorchContext;

/// How products of operands in bf16 are computed. Sums are float32 and results are rounded to bf16 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bf16Products {
    /// By libtorch's kernels for bf16.
    #[default]
    Native,
    /// By its kernels for float32, from operands that are widened for each product: without instructions that oneDNN
    /// has kernels for, libtorch's own for bf16 take 5 to 150 times as long.
    Widened,
}

impl Bf16Products {
    /// The faster way on `device`.
    pub fn on(device: Device) -> Bf16Products {
        // As libtorch asks before it has oneDNN compute a product.
        #[cfg(target_arch = "x86_64")]
        let has_kernels = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        #[cfg(not(target_arch = "x86_64"))]
        let has_kernels = true;
        if device != Device::Cpu || has_kernels { Bf16Products::Native } else { Bf16Products::Widened }
    }

    /// `operand` as products read it.
    pub(super) fn operand(self, operand: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Bf16Products::Widened if operand.kind() == Kind::BFloat16 => operand.f_to_kind(Kind::Float),
            _ => Ok(operand.shallow_clone()),
        }
    }

    /// Writes `left` times `right` to `product`, all three in one precision.
    pub(super) fn write(self, product: &Tensor, left: &Tensor, right: &Tensor) -> Result<(), TchError> {
        if self == Bf16Products::Native || product.kind() != Kind::BFloat16 {
            return left.f_mm_out(product, right).map(drop);
        }
        product.shallow_clone().f_copy_(&self.operand(left)?.f_mm(&self.operand(right)?)?)
    }
}

/// A model's parameters, and what its products read in their place.
#[derive(Clone, Copy)]
pub struct WeightViews<'a> {
    /// float32, in the order of [`Gpt2Config::parameters`].
    pub(super) params: &'a [Tensor],
    /// The same, those that products read in the precision of the products. The first one, the token embedding, is
    /// what the head reads where it is tied to it.
    pub(super) products: &'a [Tensor],
    pub(super) bf16: Bf16Products,
}

impl<'a> From<&'a [Tensor]> for WeightViews<'a> {
    /// Products in float32.
    fn from(params: &'a [Tensor]) -> WeightViews<'a> {
        WeightViews { params, products: params, bf16: Bf16Products::default() }
    }
}

impl<'a> From<&'a Vec<Tensor>> for WeightViews<'a> {
    fn from(params: &'a Vec<Tensor>) -> WeightViews<'a> {
        params.as_slice().into()
    }
}

/// Memory for rounded parameters, kept from step to step.
pub struct ProductCasts {
    precision: ComputePrecision,
    /// In the place of the faster way.
    bf16: Option<Bf16Products>,
    /// Of each parameter that products read; none of the others.
    casts: Vec<Option<Tensor>>,
    products: Vec<Tensor>,
}

impl ProductCasts {
    pub fn new(precision: ComputePrecision) -> ProductCasts {
        ProductCasts { precision, bf16: None, casts: Vec::new(), products: Vec::new() }
    }

    /// The same, with products in bf16 computed in this way.
    #[must_use]
    pub fn computing(self, bf16: Bf16Products) -> ProductCasts {
        ProductCasts { bf16: Some(bf16), ..self }
    }

    /// The views of `params` as they are now: in float32 they are the parameters themselves, in bf16 they are rounded.
    pub fn views<'a>(&'a mut self, config: &Gpt2Config, params: &'a [Tensor]) -> Result<WeightViews<'a>> {
        if self.precision == ComputePrecision::Float32 {
            return Ok(params.into());
        }
        self.round(config, params).context("rounding the parameters to bf16")?;
        let device = params.first().map_or(Device::Cpu, Tensor::device);
        let bf16 = self.bf16.unwrap_or_else(|| Bf16Products::on(device));
        Ok(WeightViews { params, products: &self.products, bf16 })
    }

    fn round(&mut self, config: &Gpt2Config, params: &[Tensor]) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        if self.casts.len() != params.len() {
            let cast = |(index, param): (usize, &Tensor)| {
                let is_read = is_product_operand(config, index) || index == unembedding_index(config, params.len());
                let memory = |param: &Tensor| {
                    let memory = Tensor::f_empty(param.size(), (Kind::BFloat16, param.device()))?;
                    // Autograd differentiates the blocks; the head does so itself.
                    memory.f_set_requires_grad(index != WTE && is_product_operand(config, index))
                };
                is_read.then(|| memory(param)).transpose()
            };
            self.casts = params.iter().enumerate().map(cast).collect::<Result<_, _>>()?;
        }
        self.products.clear();
        for (cast, param) in self.casts.iter_mut().zip(params) {
            self.products.push(match cast {
                Some(cast) => {
                    cast.f_copy_(&param.f_detach()?)?;
                    cast.shallow_clone()
                }
                None => param.shallow_clone(),
            });
        }
        Ok(())
    }
}
