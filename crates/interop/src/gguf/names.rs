//! The names that GGUF gives the parameters of GPT-2.

use crate::gpt2_names::{BlockParameter, Gpt2Parameter};

/// Names of a block's parameters behind `blk.<number>.`.
const BLOCK: [(&str, BlockParameter); 12] = [
    ("attn_norm.weight", BlockParameter::Norm1Weight),
    ("attn_norm.bias", BlockParameter::Norm1Bias),
    ("attn_qkv.weight", BlockParameter::AttentionWeight),
    ("attn_qkv.bias", BlockParameter::AttentionBias),
    ("attn_output.weight", BlockParameter::AttentionProjectionWeight),
    ("attn_output.bias", BlockParameter::AttentionProjectionBias),
    ("ffn_norm.weight", BlockParameter::Norm2Weight),
    ("ffn_norm.bias", BlockParameter::Norm2Bias),
    ("ffn_up.weight", BlockParameter::InnerWeight),
    ("ffn_up.bias", BlockParameter::InnerBias),
    ("ffn_down.weight", BlockParameter::InnerProjectionWeight),
    ("ffn_down.bias", BlockParameter::InnerProjectionBias),
];

const OTHERS: [(&str, Gpt2Parameter); 5] = [
    ("token_embd.weight", Gpt2Parameter::TokenEmbedding),
    ("position_embd.weight", Gpt2Parameter::PositionEmbedding),
    ("output_norm.weight", Gpt2Parameter::FinalNormWeight),
    ("output_norm.bias", Gpt2Parameter::FinalNormBias),
    ("output.weight", Gpt2Parameter::Head),
];

/// The name of a parameter.
pub fn name(parameter: Gpt2Parameter) -> String {
    if let Gpt2Parameter::Block { layer, part } = parameter {
        let end = BLOCK.iter().find(|(_, known)| *known == part).map_or("", |(name, _)| name);
        return format!("blk.{layer}.{end}");
    }
    OTHERS.iter().find(|(_, known)| *known == parameter).map_or_else(String::new, |(name, _)| (*name).to_owned())
}

/// The parameter of a name, if it is one of GPT-2's.
pub fn parse(name: &str) -> Option<Gpt2Parameter> {
    let Some(block) = name.strip_prefix("blk.") else {
        return OTHERS.iter().find(|(known, _)| *known == name).map(|(_, parameter)| *parameter);
    };
    let (layer, end) = block.split_once('.')?;
    let (_, part) = BLOCK.iter().find(|(known, _)| *known == end)?;
    Some(Gpt2Parameter::Block { layer: layer.parse().ok()?, part: *part })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_a_name_of_its_own_that_says_which_it_is() {
        for parameter in Gpt2Parameter::all(3, false) {
            assert_eq!(parse(&name(parameter)), Some(parameter));
        }
        assert_eq!(parse("blk.0.attn_q.weight"), None);
        assert_eq!(parse("rope_freqs.weight"), None);
    }
}
