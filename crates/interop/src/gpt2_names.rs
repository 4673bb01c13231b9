//! GPT-2's parameters by name: what there is, in the order of transformers' `named_parameters`, the two groups of its
//! Trainer, and the ways in which others write the same names. Pure functions of names and shapes.
//!
//! Invariant: all readers take names through [`meaning`], so all accept the same files.
//! Deliberately not here: the shapes, which follow from a config.json (the worker).

use std::cmp::Ordering;
use std::fmt;

use ckptd_core::snapshot::TensorMeta;

/// The token embedding, which is the head's weight too where the two are tied.
pub const EMBEDDING: &str = "transformer.wte.weight";
/// The head's own weight, where it is not tied.
pub const HEAD: &str = "lm_head.weight";

/// What `GPT2LMHeadModel` puts before the names of `GPT2Model`.
const BODY: &str = "transformer.";

/// What wrappers put into names, wherever they wrap: torch.compile, DistributedDataParallel, FSDP, activation
/// checkpointing. No part of GPT-2 has such a name.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The constants that older versions of transformers saved with each block: causal masks, no state.
const MASKS: [&str; 4] = ["attn.bias", "attn.masked_bias", "crossattention.bias", "crossattention.masked_bias"];

/// A parameter of GPT-2. They sort in the order of `GPT2LMHeadModel.named_parameters()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gpt2Parameter {
    /// `wte.weight`, [vocabulary, width].
    TokenEmbedding,
    /// `wpe.weight`, [positions, width].
    PositionEmbedding,
    /// A parameter of block `layer`, from 0.
    Block {
        /// The block's number.
        layer: u64,
        /// Which of its parameters.
        part: BlockParameter,
    },
    /// `ln_f.weight`, [width].
    FinalNormWeight,
    /// `ln_f.bias`, [width].
    FinalNormBias,
    /// `lm_head.weight`, [vocabulary, width].
    Head,
}

/// A parameter of one block, in the order in which the block's module defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockParameter {
    /// `ln_1.weight`
    Norm1Weight,
    /// `ln_1.bias`
    Norm1Bias,
    /// `attn.c_attn.weight`: queries, keys and values.
    AttentionWeight,
    /// `attn.c_attn.bias`
    AttentionBias,
    /// `attn.c_proj.weight`: from the heads to the residual stream.
    AttentionProjectionWeight,
    /// `attn.c_proj.bias`
    AttentionProjectionBias,
    /// `ln_2.weight`
    Norm2Weight,
    /// `ln_2.bias`
    Norm2Bias,
    /// `mlp.c_fc.weight`: from the residual stream to the inner layer.
    InnerWeight,
    /// `mlp.c_fc.bias`
    InnerBias,
    /// `mlp.c_proj.weight`: from the inner layer to the residual stream.
    InnerProjectionWeight,
    /// `mlp.c_proj.bias`
    InnerProjectionBias,
}

impl BlockParameter {
    /// All of them, in their order.
    pub const ALL: [BlockParameter; 12] = [
        BlockParameter::Norm1Weight,
        BlockParameter::Norm1Bias,
        BlockParameter::AttentionWeight,
        BlockParameter::AttentionBias,
        BlockParameter::AttentionProjectionWeight,
        BlockParameter::AttentionProjectionBias,
        BlockParameter::Norm2Weight,
        BlockParameter::Norm2Bias,
        BlockParameter::InnerWeight,
        BlockParameter::InnerBias,
        BlockParameter::InnerProjectionWeight,
        BlockParameter::InnerProjectionBias,
    ];

    /// Its name within the block.
    pub const fn name(self) -> &'static str {
        match self {
            BlockParameter::Norm1Weight => "ln_1.weight",
            BlockParameter::Norm1Bias => "ln_1.bias",
            BlockParameter::AttentionWeight => "attn.c_attn.weight",
            BlockParameter::AttentionBias => "attn.c_attn.bias",
            BlockParameter::AttentionProjectionWeight => "attn.c_proj.weight",
            BlockParameter::AttentionProjectionBias => "attn.c_proj.bias",
            BlockParameter::Norm2Weight => "ln_2.weight",
            BlockParameter::Norm2Bias => "ln_2.bias",
            BlockParameter::InnerWeight => "mlp.c_fc.weight",
            BlockParameter::InnerBias => "mlp.c_fc.bias",
            BlockParameter::InnerProjectionWeight => "mlp.c_proj.weight",
            BlockParameter::InnerProjectionBias => "mlp.c_proj.bias",
        }
    }
}

impl fmt::Display for Gpt2Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gpt2Parameter::TokenEmbedding => f.write_str(EMBEDDING),
            Gpt2Parameter::PositionEmbedding => write!(f, "{BODY}wpe.weight"),
            Gpt2Parameter::Block { layer, part } => write!(f, "{BODY}h.{layer}.{}", part.name()),
            Gpt2Parameter::FinalNormWeight => write!(f, "{BODY}ln_f.weight"),
            Gpt2Parameter::FinalNormBias => write!(f, "{BODY}ln_f.bias"),
            Gpt2Parameter::Head => f.write_str(HEAD),
        }
    }
}

impl Gpt2Parameter {
    /// The parameters of a model of `layers` blocks, in their order; `tied` leaves out the head.
    pub fn all(layers: u64, tied: bool) -> impl Iterator<Item = Gpt2Parameter> {
        let block = |layer| BlockParameter::ALL.into_iter().map(move |part| Gpt2Parameter::Block { layer, part });
        [Gpt2Parameter::TokenEmbedding, Gpt2Parameter::PositionEmbedding]
            .into_iter()
            .chain((0..layers).flat_map(block))
            .chain([Gpt2Parameter::FinalNormWeight, Gpt2Parameter::FinalNormBias])
            .chain((!tied).then_some(Gpt2Parameter::Head))
    }

    /// The parameter of a [`canonical`] name, if it is one of GPT-2's.
    pub fn parse(name: &str) -> Option<Gpt2Parameter> {
        if name == HEAD {
            return Some(Gpt2Parameter::Head);
        }
        match name.strip_prefix(BODY)? {
            "wte.weight" => Some(Gpt2Parameter::TokenEmbedding),
            "wpe.weight" => Some(Gpt2Parameter::PositionEmbedding),
            "ln_f.weight" => Some(Gpt2Parameter::FinalNormWeight),
            "ln_f.bias" => Some(Gpt2Parameter::FinalNormBias),
            body => {
                let (layer, rest) = block(body)?;
                let part = BlockParameter::ALL.into_iter().find(|part| part.name() == rest)?;
                Some(Gpt2Parameter::Block { layer, part })
            }
        }
    }

    /// Whether it is the weight of a linear layer within a block: `Conv1D` keeps it as [in, out], `nn.Linear` as
    /// [out, in].
    pub fn is_linear(self) -> bool {
        use BlockParameter::{AttentionProjectionWeight, AttentionWeight, InnerProjectionWeight, InnerWeight};
        let linear = [AttentionWeight, AttentionProjectionWeight, InnerWeight, InnerProjectionWeight];
        matches!(self, Gpt2Parameter::Block { part, .. } if linear.contains(&part))
    }

    /// Whether it is added: the name ends with `.bias`.
    pub fn is_bias(self) -> bool {
        match self {
            Gpt2Parameter::Block { part, .. } => part.name().ends_with(".bias"),
            other => other == Gpt2Parameter::FinalNormBias,
        }
    }

    /// Whether it is a linear layer's weight whose result is added to the residual stream.
    pub fn is_residual_projection(self) -> bool {
        use BlockParameter::{AttentionProjectionWeight, InnerProjectionWeight};
        matches!(self, Gpt2Parameter::Block { part: AttentionProjectionWeight | InnerProjectionWeight, .. })
    }
}

/// What a name in somebody's file stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameMeaning {
    /// A parameter.
    Parameter {
        /// What stands before it: the attributes under which the model hangs in a larger module, without wrappers.
        prefix: String,
        /// Which parameter.
        parameter: Gpt2Parameter,
    },
    /// A causal mask that older versions of transformers saved, minGPT too: a constant, no state.
    Mask,
    /// Nothing of GPT-2; the name without wrappers.
    Other(String),
}

/// What `name` stands for, behind wrappers and whatever attributes.
pub fn meaning(name: &str) -> NameMeaning {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    for start in 0..parts.len() {
        let rest = parts[start..].join(".");
        let body = rest.strip_prefix(BODY).unwrap_or(&rest);
        if block(body).is_some_and(|(_, part)| MASKS.contains(&part)) {
            return NameMeaning::Mask;
        }
        // Files of the bare GPT2Model have no prefix.
        let parameter = Gpt2Parameter::parse(&rest).or_else(|| Gpt2Parameter::parse(&format!("{BODY}{body}")));
        if let Some(parameter) = parameter {
            return NameMeaning::Parameter { prefix: parts[..start].join("."), parameter };
        }
    }
    NameMeaning::Other(parts.join("."))
}

/// The name under which a snapshot holds a tensor of a file, or `None` for a constant that is no state.
pub fn canonical(name: &str) -> Option<String> {
    match meaning(name) {
        NameMeaning::Parameter { parameter, .. } => Some(parameter.to_string()),
        NameMeaning::Mask => None,
        NameMeaning::Other(name) => Some(name),
    }
}

/// The order of `GPT2LMHeadModel.named_parameters()`. Names that are not GPT-2's come last, by name.
pub fn order(a: &str, b: &str) -> Ordering {
    match (Gpt2Parameter::parse(a), Gpt2Parameter::parse(b)) {
        (Some(first), Some(second)) => first.cmp(&second).then_with(|| a.cmp(b)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
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

/// The names of the two groups of [`optimizer_order`].
pub fn optimizer_groups<'a>(params: &[&'a TensorMeta]) -> [Vec<&'a str>; 2] {
    let (order, decaying) = optimizer_order(params);
    let names = |places: &[usize]| places.iter().map(|&place| params[place].name.as_str()).collect();
    [names(&order[..decaying]), names(&order[decaying..])]
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
            ("module.lm_head.weight", Some("lm_head.weight")),
            ("model.transformer.wte.weight", Some("transformer.wte.weight")),
            ("net.backbone.h.1.ln_2.bias", Some("transformer.h.1.ln_2.bias")),
            ("transformer.h.0._checkpoint_wrapped_module.ln_1.bias", Some("transformer.h.0.ln_1.bias")),
            ("_fsdp_wrapped_module.transformer.h.0._fsdp_wrapped_module.mlp.c_fc.bias", {
                Some("transformer.h.0.mlp.c_fc.bias")
            }),
            ("transformer.h.0.attn.c_attn.lora_A.default.weight", {
                Some("transformer.h.0.attn.c_attn.lora_A.default.weight")
            }),
            ("transformer.h.0.attn.bias", None),
            ("h.11.attn.masked_bias", None),
            ("module.h.11.attn.masked_bias", None),
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
    fn every_parameter_is_its_own_canonical_name_and_they_are_listed_in_order() {
        let all: Vec<Gpt2Parameter> = Gpt2Parameter::all(12, false).collect();
        assert_eq!(all.len(), 12 * 12 + 5);
        assert!(all.is_sorted());
        for parameter in all {
            let name = parameter.to_string();
            assert_eq!(Gpt2Parameter::parse(&name), Some(parameter));
            assert_eq!(canonical(&name), Some(name));
        }
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
