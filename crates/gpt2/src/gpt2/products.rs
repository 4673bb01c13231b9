//! The parameters as matrix products read them: as they are, or rounded to bf16.
//!
//! Invariant: what [`ProductCasts::views`] returns is rounded from the parameters that it was given, nothing older.
//! Deliberately not here: the products themselves (`model`, `head`).

use ckptd_core::Result;
use ckptd_core::config::ComputePrecision;
use ckptd_interop::gpt2_config::Gpt2Config;
use tch::{Kind, TchError, Tensor};

use super::places::{WTE, is_product_operand, unembedding_index};
use crate::torch::TorchContext;

/// A model's parameters, and what its products read in their place.
#[derive(Clone, Copy)]
pub struct WeightViews<'a> {
    /// float32, in the order of [`Gpt2Config::parameters`].
    pub(super) params: &'a [Tensor],
    /// The same, those that products read in the precision of the products. The first one, the token embedding, is
    /// what the head reads where it is tied to it.
    pub(super) products: &'a [Tensor],
}

impl<'a> From<&'a [Tensor]> for WeightViews<'a> {
    /// Products in float32.
    fn from(params: &'a [Tensor]) -> WeightViews<'a> {
        WeightViews { params, products: params }
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
    /// Of each parameter that products read; none of the others.
    casts: Vec<Option<Tensor>>,
    products: Vec<Tensor>,
}

impl ProductCasts {
    pub fn new(precision: ComputePrecision) -> ProductCasts {
        ProductCasts { precision, casts: Vec::new(), products: Vec::new() }
    }

    /// The views of `params` as they are now: in float32 they are the parameters themselves, in bf16 they are rounded.
    pub fn views<'a>(&'a mut self, config: &Gpt2Config, params: &'a [Tensor]) -> Result<WeightViews<'a>> {
        if self.precision == ComputePrecision::Float32 {
            return Ok(params.into());
        }
        self.round(config, params).context("rounding the parameters to bf16")?;
        Ok(WeightViews { params, products: &self.products })
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
