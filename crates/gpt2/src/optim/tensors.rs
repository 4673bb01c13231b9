//! The update by tensor operations, for devices whose memory this process cannot read.

use ckptd_core::{Error, Result};
use tch::{Kind, TchError, Tensor};

use super::coefficients::UpdateCoefficients;
use crate::torch::TorchContext;

/// The global norm of these tensors.
pub(super) fn norm(gradients: &[Tensor]) -> Result<f64> {
    let squares = || -> Result<f64, TchError> {
        let norms: Result<Vec<Tensor>, _> = gradients.iter().map(Tensor::f_norm).collect();
        Tensor::f_stack(&norms?, 0)?.f_to_kind(Kind::Double)?.f_norm()?.f_double_value(&[])
    };
    squares().context("the gradient's norm")
}

/// Changes a parameter and its moments in place.
pub(super) fn update(
    param: Option<&Tensor>,
    moments: [Option<&Tensor>; 2],
    gradient: &Tensor,
    coefficients: UpdateCoefficients,
) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let missing = || Error::Other("a tensor of the state is not on the device although its gradient is".into());
    let mut p = param.ok_or_else(missing)?.f_detach().context("the update")?;
    match coefficients {
        UpdateCoefficients::Sgd { lr, momentum, decay, scale } => {
            sgd(&mut p, moments[0], gradient, [lr, momentum, decay, scale]).context("the update")
        }
        UpdateCoefficients::AdamW { .. } => {
            let [m, v] = [moments[0].ok_or_else(missing)?, moments[1].ok_or_else(missing)?];
            adamw(&mut p, m, v, gradient, coefficients).context("the update")
        }
    }
}

fn sgd(p: &mut Tensor, buffer: Option<&Tensor>, gradient: &Tensor, figures: [f32; 4]) -> Result<(), TchError> {
    let [lr, momentum, decay, scale] = figures.map(f64::from);
    let mut g = gradient.f_mul_scalar(scale)?;
    if decay != 0.0 {
        g = g.f_add(&p.f_mul_scalar(decay)?)?;
    }
    if let Some(buffer) = buffer {
        let mut buffer = buffer.shallow_clone();
        let _ = buffer.f_mul_scalar_(momentum)?.f_add_(&g)?;
        g = buffer;
    }
    let _ = p.f_sub_(&g.f_mul_scalar(lr)?)?;
    Ok(())
}

fn adamw(
    p: &mut Tensor,
    m: &Tensor,
    v: &Tensor,
    gradient: &Tensor,
    figures: UpdateCoefficients,
) -> Result<(), TchError> {
    let UpdateCoefficients::AdamW { keep, beta1, beta2, step_size, root_scale, eps, scale } = figures else {
        return Ok(());
    };
    let (mut m, mut v) = (m.shallow_clone(), v.shallow_clone());
    let g = gradient.f_mul_scalar(f64::from(scale))?;
    let _ = m.f_mul_scalar_(f64::from(beta1))?.f_add_(&g.f_mul_scalar(f64::from(1.0 - beta1))?)?;
    let _ = v.f_mul_scalar_(f64::from(beta2))?.f_addcmul_(&g.f_mul_scalar(f64::from(1.0 - beta2))?, &g)?;
    let denominator = v.f_sqrt()?.f_mul_scalar(f64::from(root_scale))?.f_add_scalar(f64::from(eps))?;
    let _ = p.f_mul_scalar_(f64::from(keep))?;
    let _ = p.f_sub_(&m.f_div(&denominator)?.f_mul_scalar(f64::from(step_size))?)?;
    Ok(())
}
