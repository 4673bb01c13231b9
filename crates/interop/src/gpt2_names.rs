//! GPT-2's parameters by name: the order of transformers' `named_parameters`, the two groups of its Trainer, and the
//! ways in which others write the same names. Pure functions of names and shapes.
//!
//! Deliberately not here: what a config.json says of shapes (the worker holds a snapshot against it).

use std::cmp::Ordering;

use ckptd_core::snapshot::TensorMeta;

pub const EMBEDDING: &str = "transformer.wte.weight";
pub const HEAD: &str = "lm_head.weight";

/// What a name may begin with in files of others: torch.compile's and DistributedDataParallel's wrappers.
const WRAPPERS: [&str; 2] = ["_orig_mod.", "module."];

/// Order of the tensors within a block, as its module defines them.
const IN_BLOCK: [&str; 12] = [
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
];

/// The name under which a snapshot holds a tensor of a file, or `None` for a buffer that is no state (the causal
/// masks that older versions of transformers saved).
pub fn canonical(name: &str) -> Option<String> {
    let mut name = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    let bare = name.strip_prefix("transformer.").unwrap_or(name);
    if let Some((_, rest)) = block(bare)
        && matches!(rest, "attn.bias" | "attn.masked_bias" | "crossattention.bias" | "crossattention.masked_bias")
    {
        return None;
    }
    // Files of the bare GPT2Model have no prefix.
    let of_body = block(bare).is_some() || ["wte.", "wpe.", "ln_f."].iter().any(|part| bare.starts_with(part));
    Some(if of_body { format!("transformer.{bare}") } else { name.to_owned() })
}

/// The order of `GPT2LMHeadModel.named_parameters()`. Names that are not GPT-2's come last, by name.
pub fn order(a: &str, b: &str) -> Ordering {
    rank(a).cmp(&rank(b)).then_with(|| a.cmp(b))
}

fn rank(name: &str) -> (usize, u64, usize) {
    let Some(body) = name.strip_prefix("transformer.") else {
        return (if name == HEAD { 5 } else { 6 }, 0, 0);
    };
    match body {
        "wte.weight" => (0, 0, 0),
        "wpe.weight" => (1, 0, 0),
        "ln_f.weight" => (3, 0, 0),
        "ln_f.bias" => (4, 0, 0),
        _ => match block(body).map(|(number, rest)| (number, IN_BLOCK.iter().position(|known| *known == rest))) {
            Some((number, Some(place))) => (2, number, place),
            _ => (6, 0, 0),
        },
    }
}

/// `h.<number>.<rest>`
fn block(body: &str) -> Option<(u64, &str)> {
    let (number, rest) = body.strip_prefix("h.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// Whether weight decay falls on a parameter: on weights of linear layers and embeddings, which have two dimensions,
/// and not on biases and layer norms. For GPT-2 this is what `Trainer.get_decay_parameter_names` finds by module.
pub fn decays(meta: &TensorMeta) -> bool {
    meta.shape.len() >= 2
}

/// The indices of `params` in the order of the optimiser's state in PyTorch: first the group that decays, then the
/// other, each in the order of the parameters. Returns the order and the size of the first group.
pub fn optimizer_order(params: &[&TensorMeta]) -> (Vec<usize>, usize) {
    let (mut order, mut rest): (Vec<usize>, Vec<usize>) = (0..params.len()).partition(|&i| decays(params[i]));
    let decaying = order.len();
    order.append(&mut rest);
    (order, decaying)
}

/// Whether the head's weights are the embedding's: a GPT-2 with an embedding and no head of its own.
pub fn is_tied<'a>(mut names: impl Iterator<Item = &'a str> + Clone) -> bool {
    names.clone().any(|name| name == EMBEDDING) && !names.any(|name| name == HEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckptd_core::dtype::DType;
    use ckptd_core::snapshot::Role;

    #[test]
    fn names_of_others_become_those_of_the_model() {
        for (theirs, ours) in [
            ("wte.weight", Some("transformer.wte.weight")),
            ("h.3.attn.c_attn.bias", Some("transformer.h.3.attn.c_attn.bias")),
            ("_orig_mod.module.transformer.ln_f.bias", Some("transformer.ln_f.bias")),
            ("lm_head.weight", Some("lm_head.weight")),
            ("transformer.h.0.attn.bias", None),
            ("h.11.attn.masked_bias", None),
            ("something.else", Some("something.else")),
        ] {
            assert_eq!(canonical(theirs).as_deref(), ours, "{theirs}");
        }
    }

    #[test]
    fn parameters_are_in_the_order_of_the_module_and_layers_by_number() {
        let sorted = [
            "transformer.wte.weight",
            "transformer.wpe.weight",
            "transformer.h.2.ln_1.weight",
            "transformer.h.2.mlp.c_proj.bias",
            "transformer.h.10.ln_1.weight",
            "transformer.h.10.attn.c_attn.weight",
            "transformer.ln_f.weight",
            "transformer.ln_f.bias",
            "lm_head.weight",
            "else",
            "transformer.h.x.y",
        ];
        let mut shuffled = sorted;
        shuffled.reverse();
        shuffled.sort_by(|a, b| order(a, b));
        assert_eq!(shuffled, sorted);
    }

    #[test]
    fn the_optimizer_takes_the_decaying_group_first() {
        let meta = |name: &str, dimensions: usize| TensorMeta {
            role: Role::Param,
            name: name.into(),
            dtype: DType::F32,
            shape: vec![2; dimensions],
        };
        let metas = [meta("a", 2), meta("b", 1), meta("c", 1), meta("d", 2)];
        assert_eq!(optimizer_order(&metas.iter().collect::<Vec<_>>()), (vec![0, 3, 1, 2], 2));
    }
}
