//! What a merge consists of: the tensors of an adapter, each as a step on a parameter of its base model.
//!
//! The steps are those of PEFT's `merge_and_unload`, in its order: first what replaces a parameter, then the products.
//! A head that is tied to the embedding is one parameter with it, as in PEFT, unless `modules_to_save` has made one of
//! the two its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lora_config::{BiasRule, LoraConfig, TargetRule, ends_with};
use super::tensor_name::{TensorName, TensorPart};
use crate::gpt2_names::{self, Gpt2Parameter, NameMeaning};
use crate::limits::ReadLimits;
use crate::{hf, names, safetensors};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Tensor, TensorMeta};

/// One step of a merge, on the parameter of this name.
pub enum MergeStep {
    /// The adapter's tensor takes the parameter's place.
    Replace { name: String, tensor: Tensor },
    /// `up` times `down` times `scale` is added, transposed where `is_turned`.
    LowRank { name: String, down: Tensor, up: Tensor, scale: f64, is_turned: bool },
    /// The tensor times `scale` is added.
    Add { name: String, tensor: Tensor, scale: f64 },
}

impl MergeStep {
    /// The parameter that it changes.
    pub fn name(&self) -> &str {
        match self {
            MergeStep::Replace { name, .. } | MergeStep::LowRank { name, .. } | MergeStep::Add { name, .. } => name,
        }
    }
}

/// What the worker tells of a merge.
#[derive(Debug, Deserialize, Serialize)]
pub struct MergeReport {
    /// Modules that had a LoRA.
    pub layers: usize,
    /// The head was the embedding, and is not any more.
    pub splits_head: bool,
}

/// How an adapter is merged into its base model.
pub struct MergePlan {
    pub steps: Vec<MergeStep>,
    /// The head begins as a copy of the embedding, and is its own parameter from here on.
    pub splits_head: bool,
    /// Modules that have a LoRA.
    pub layers: usize,
}

/// An adapter as it lies in its folder.
pub struct LoraAdapter {
    config: LoraConfig,
    /// By the names of the file.
    tensors: Vec<Tensor>,
    /// The file of the tensors, for messages.
    file: PathBuf,
}

/// Reads the tensors of the adapter in `dir`, whatever it is, and says where they are.
///
/// # Errors
/// As [`LoraAdapter::open`].
pub fn tensors(dir: &Path, limits: &ReadLimits) -> Result<(Vec<Tensor>, PathBuf)> {
    let (file, torch) = (dir.join(names::ADAPTER_WEIGHTS), dir.join(names::TORCH_ADAPTER_WEIGHTS));
    if file.exists() {
        return Ok((safetensors::open(&file, limits)?.tensors, file));
    }
    if torch.exists() {
        return Ok((hf::state_dict(&torch, limits)?, torch));
    }
    let missing = format!("{} has an adapter's config and no {}", dir.display(), names::ADAPTER_WEIGHTS);
    Err(Error::NotFound(missing + "; save it with save_pretrained"))
}

/// Whether the folder `dir` holds an adapter of PEFT and no model of its own.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(names::ADAPTER_CONFIG).exists() && !hf::has_weights(dir)
}

/// The tensors of one module.
type ModuleTensors = BTreeMap<(TensorPart, &'static str), Tensor>;

impl LoraAdapter {
    /// Reads the adapter in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Malformed`] that names the field or the tensor; [`Error::NotFound`] where it has no tensors.
    pub fn open(dir: &Path, limits: &ReadLimits) -> Result<LoraAdapter> {
        let config = LoraConfig::read(dir)?;
        let (tensors, file) = tensors(dir, limits)?;
        Ok(LoraAdapter { config, tensors, file })
    }

    /// The steps that merge it into a base model of these parameters, by their canonical names.
    ///
    /// # Errors
    /// [`Error::Malformed`] that names the tensor that does not fit.
    pub fn plan(self, base: &[TensorMeta]) -> Result<MergePlan> {
        let LoraAdapter { config, tensors, file } = self;
        let refuse = |what: String| Error::malformed(&file, what);
        let modules = by_module(tensors).map_err(refuse)?;
        let planner = MergePlanner { config: &config, base };
        planner.check_modules(&modules).map_err(refuse)?;
        planner.plan(modules).map_err(refuse)
    }
}

fn by_module(tensors: Vec<Tensor>) -> Result<BTreeMap<String, ModuleTensors>, String> {
    let mut modules: BTreeMap<String, ModuleTensors> = BTreeMap::new();
    for tensor in tensors {
        let name = &tensor.meta.name;
        let parsed = TensorName::parse(name).and_then(|found| Some((canonical_module(&found)?, found)));
        let (module, found) = parsed.ok_or_else(|| format!("{name} is no part of a LoRA on a GPT-2"))?;
        let said = name.clone();
        if modules.entry(module).or_default().insert((found.part, found.leaf), tensor).is_some() {
            return Err(format!("{said} stands for a part that the file has twice"));
        }
    }
    Ok(modules)
}

/// The module of GPT-2 that is meant, behind wrappers and with the prefix of the language model.
fn canonical_module(name: &TensorName) -> Option<String> {
    match gpt2_names::meaning(&name.parameter()) {
        NameMeaning::Parameter { prefix, parameter } if prefix.is_empty() => {
            let parameter = parameter.to_string();
            Some(parameter.strip_suffix(name.leaf)?.trim_end_matches('.').to_owned())
        }
        _ => None,
    }
}

struct MergePlanner<'a> {
    config: &'a LoraConfig,
    base: &'a [TensorMeta],
}

impl MergePlanner<'_> {
    fn is_tied(&self) -> bool {
        gpt2_names::is_tied(self.base.iter().map(|meta| meta.name.as_str()))
    }

    /// Holds the modules against what the config says of them.
    fn check_modules(&self, modules: &BTreeMap<String, ModuleTensors>) -> Result<(), String> {
        let is_lora = |parts: &ModuleTensors| parts.keys().any(|(part, _)| *part <= TensorPart::EmbeddingUp);
        let lora: BTreeSet<&str> =
            modules.iter().filter(|(_, parts)| is_lora(parts)).map(|(module, _)| module.as_str()).collect();
        if let Some(other) = lora.iter().find(|module| !self.config.targets.has(module) || self.config.saves(module)) {
            return Err(format!("{other} has a LoRA, and is none of the target_modules of adapter_config.json"));
        }
        if let TargetRule::Ends(ends) = &self.config.targets
            && let Some(unused) = ends.iter().find(|end| !lora.iter().any(|module| ends_with(module, end)))
        {
            return Err(format!("it has no LoRA for {unused}, which is among the target_modules"));
        }
        let expected = self.base.iter().filter_map(|meta| Some((meta, meta.name.strip_suffix(".weight")?)));
        let mut expected = expected.filter(|(meta, module)| {
            meta.shape.len() == 2 && self.config.targets.has(module) && !self.config.saves(module)
        });
        if let (false, Some((_, missing))) =
            (self.config.is_partial, expected.find(|(_, module)| !lora.contains(module)))
        {
            return Err(format!("it has no LoRA for {missing}, which target_modules names"));
        }
        let saved = |name: &String| modules.keys().any(|module| ends_with(module, name));
        match self.config.modules_to_save.iter().find(|name| !saved(name)) {
            Some(missing) => Err(format!("it has no tensor of {missing}, which is among the modules_to_save")),
            None => Ok(()),
        }
    }

    fn plan(&self, modules: BTreeMap<String, ModuleTensors>) -> Result<MergePlan, String> {
        let pair = [gpt2_names::EMBEDDING, gpt2_names::HEAD].map(|name| name.trim_end_matches(".weight"));
        let is_own = |module: &str| self.config.saves(module) && modules.contains_key(module);
        let splits_head = self.is_tied() && pair.iter().any(|module| is_own(module));
        if self.config.keeps_ties && self.is_tied() && pair.iter().any(|module| modules.contains_key(*module)) {
            return Err("its embedding is trained with ensure_weight_tying, which is not merged here".into());
        }
        let mut modules: Vec<(String, ModuleTensors)> = modules.into_iter().collect();
        modules.sort_by(|a, b| gpt2_names::order(&format!("{}.weight", a.0), &format!("{}.weight", b.0)));
        let (mut steps, mut products, mut layers) = (Vec::new(), Vec::new(), 0);
        for (module, mut parts) in modules {
            let made = self.products(&module, &mut parts, splits_head)?;
            layers += usize::from(!made.is_empty());
            products.extend(made);
            self.replacements(&module, parts, splits_head, &mut steps)?;
        }
        steps.extend(products);
        Ok(MergePlan { steps, splits_head, layers })
    }

    /// The LoRA of one module, taken out of `parts`.
    fn products(&self, module: &str, parts: &mut ModuleTensors, splits_head: bool) -> Result<Vec<MergeStep>, String> {
        let mut take = |part, leaf| parts.remove(&(part, leaf));
        let linear = (take(TensorPart::Down, "weight"), take(TensorPart::Up, "weight"));
        let embedding = (take(TensorPart::EmbeddingDown, "weight"), take(TensorPart::EmbeddingUp, "weight"));
        let up_bias = take(TensorPart::UpBias, "bias");
        let (down, up, is_embedding) = match (linear, embedding) {
            ((None, None), (None, None)) if up_bias.is_none() => return Ok(Vec::new()),
            ((Some(down), Some(up)), (None, None)) => (down, up, false),
            ((None, None), (Some(down), Some(up))) => (down, up, true),
            _ => return Err(format!("{module} has one part of a LoRA, and not the other")),
        };
        let (meta, name) = self.target(&format!("{module}.weight"), splits_head)?;
        let parameter = Gpt2Parameter::parse(&format!("{module}.weight"));
        let is_turned = is_embedding || parameter.is_some_and(Gpt2Parameter::is_linear);
        let &[rows, columns] = meta.shape.as_slice() else {
            return Err(format!("{module} has a LoRA, and is no matrix"));
        };
        let (into, out) = if is_turned { (rows, columns) } else { (columns, rows) };
        let rank = self.config.rank_of(module);
        expect(&down, &[rank, into])?;
        expect(&up, &[out, rank])?;
        let scale = self.config.scale_of(module);
        let mut steps = vec![MergeStep::LowRank { name, down, up, scale, is_turned }];
        match up_bias {
            None if self.config.has_up_bias => {
                return Err(format!("{module} has no lora_B.bias, although adapter_config.json says lora_bias"));
            }
            None => {}
            Some(tensor) => {
                let (meta, name) = self.target(&format!("{module}.bias"), splits_head)?;
                expect(&tensor, &meta.shape)?;
                steps.push(MergeStep::Add { name, tensor, scale });
            }
        }
        Ok(steps)
    }

    /// What of one module takes the place of the base model's own.
    fn replacements(
        &self,
        module: &str,
        mut parts: ModuleTensors,
        splits_head: bool,
        steps: &mut Vec<MergeStep>,
    ) -> Result<(), String> {
        for leaf in ["weight", "bias"] {
            let mut take = |part| parts.remove(&(part, leaf));
            let (plain, under) = (take(TensorPart::Plain), take(TensorPart::UnderLora));
            let (twice, _) = (take(TensorPart::SavedTwice), take(TensorPart::Original));
            let has_same = |twice: &Tensor| plain.as_ref().is_some_and(|plain| plain.has_values_of(twice));
            if let Some(twice) = twice.filter(|twice| !has_same(twice)) {
                return Err(format!("{} is not the {leaf} of {module} that it has besides", twice.meta.name));
            }
            if let (Some(plain), Some(under)) = (&plain, &under) {
                return Err(format!("{} and {} are one parameter", plain.meta.name, under.meta.name));
            }
            let Some(tensor) = plain.or(under) else { continue };
            self.check_trained(module, leaf, &tensor)?;
            let (meta, name) = self.target(&format!("{module}.{leaf}"), splits_head)?;
            expect(&tensor, &meta.shape)?;
            steps.push(MergeStep::Replace { name, tensor });
        }
        Ok(())
    }

    /// Whether the config says that an adapter has this parameter of its own.
    fn check_trained(&self, module: &str, leaf: &str, tensor: &Tensor) -> Result<(), String> {
        let is_lora = self.config.targets.has(module);
        // PEFT saves the embeddings, too, where they are targets or have another size.
        let is_embedding = leaf == "weight" && ["transformer.wte", "lm_head"].contains(&module);
        let has_bias = leaf == "bias"
            && match self.config.bias {
                BiasRule::None => false,
                BiasRule::All => true,
                BiasRule::LoraOnly => is_lora,
            };
        if self.config.saves(module) || is_embedding || has_bias {
            return Ok(());
        }
        Err(format!("{} is neither of a LoRA nor of what adapter_config.json says was saved", tensor.meta.name))
    }

    /// The parameter of the base model that `name` means, and the name under which the merge has it.
    fn target(&self, name: &str, splits_head: bool) -> Result<(&TensorMeta, String), String> {
        let find = |name: &str| self.base.iter().find(|meta| meta.name == name);
        if name == gpt2_names::HEAD && self.is_tied() {
            let embedding = find(gpt2_names::EMBEDDING).ok_or("the base model has no embedding")?;
            let merged = if splits_head { gpt2_names::HEAD } else { gpt2_names::EMBEDDING };
            return Ok((embedding, merged.to_owned()));
        }
        find(name).map(|meta| (meta, name.to_owned())).ok_or_else(|| format!("{name} is not in the base model"))
    }
}

fn expect(tensor: &Tensor, shape: &[u64]) -> Result<(), String> {
    if tensor.meta.shape == shape {
        return Ok(());
    }
    Err(format!(
        "{} has the shape {:?}, and {shape:?} is what fits the base model and adapter_config.json",
        tensor.meta.name, tensor.meta.shape
    ))
}
