//! The names of an adapter's tensors: which part of a LoRA, of which module.

/// What PEFT puts before the names of the model that it wraps.
const PREFIX: &str = "base_model.model.";

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TensorPart {
    /// `lora_A` of a linear layer, [rank, in].
    Down,
    /// `lora_B` of a linear layer, [out, rank].
    Up,
    /// The bias of `lora_B`.
    UpBias,
    /// `lora_embedding_A`, [rank, rows].
    EmbeddingDown,
    /// `lora_embedding_B`, [columns, rank].
    EmbeddingUp,
    /// `base_layer.<weight or bias>`: of the layer under a LoRA, which a tied head shares.
    UnderLora,
    /// What the modules of `modules_to_save` were before, which no merge uses.
    Original,
    /// A second name, under `bias = "all"`, of a bias that has its plain one.
    SavedTwice,
    /// A parameter by its own name.
    Plain,
}

/// The name of a tensor, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorName {
    /// The module, as the base model names it.
    pub(super) module: String,
    pub(super) part: TensorPart,
    /// `weight` or `bias` of the module, where the part does not say it.
    pub(super) leaf: &'static str,
}

impl TensorName {
    /// `None` for a name that is no weight's and no bias's.
    pub(super) fn parse(name: &str) -> Option<TensorName> {
        use TensorPart::*;
        const ENDS: [(&str, TensorPart, &str); 13] = [
            (".lora_A.weight", Down, "weight"),
            (".lora_B.weight", Up, "weight"),
            (".lora_B.bias", UpBias, "bias"),
            (".lora_embedding_A", EmbeddingDown, "weight"),
            (".lora_embedding_B", EmbeddingUp, "weight"),
            (".base_layer.weight", UnderLora, "weight"),
            (".base_layer.bias", UnderLora, "bias"),
            (".original_module.weight", Original, "weight"),
            (".original_module.bias", Original, "bias"),
            (".modules_to_save.weight", SavedTwice, "weight"),
            (".modules_to_save.bias", SavedTwice, "bias"),
            (".weight", Plain, "weight"),
            (".bias", Plain, "bias"),
        ];
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        let found = ENDS.iter().find_map(|(end, part, leaf)| Some((name.strip_suffix(end)?, *part, *leaf)));
        found.map(|(module, part, leaf)| TensorName { module: module.to_owned(), part, leaf })
    }

    /// The parameter of the base model.
    pub(super) fn parameter(&self) -> String {
        format!("{}.{}", self.module, self.leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_module_and_part() {
        let of = |name: &str| TensorName::parse(name).map(|name| (name.parameter(), name.part));
        let query = "transformer.h.0.attn.c_attn";
        for (name, part) in [
            ("lora_A.weight", TensorPart::Down),
            ("lora_B.weight", TensorPart::Up),
            ("base_layer.weight", TensorPart::UnderLora),
            ("weight", TensorPart::Plain),
        ] {
            let expected = Some((format!("{query}.weight"), part));
            assert_eq!(of(&format!("base_model.model.{query}.{name}")), expected);
            assert_eq!(of(&format!("{query}.{name}")), expected, "without the prefix");
        }
        let bias = of("base_model.model.transformer.ln_f.original_module.bias");
        assert_eq!(bias, Some(("transformer.ln_f.bias".into(), TensorPart::Original)));
        assert_eq!(of("transformer.wte.lora_embedding_A"), {
            Some(("transformer.wte.weight".into(), TensorPart::EmbeddingDown))
        });
        assert_eq!(of("transformer.h.0.attn.c_attn.lora_magnitude_vector"), None);
    }
}
