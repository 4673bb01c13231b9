//! Which parameter each entry of an optimiser's state belongs to: by the names that stand beside them, else by order.
//!
//! PyTorch numbers parameters in the order in which the optimiser was given them. Without names the groups' sizes and
//! the shapes of their tensors are held against the orders that training scripts use; a state that fits none, or two
//! that differ, is refused. Deliberately not here: the tensors' values.

use std::collections::HashMap;

use super::optimizer_state::{ParameterKey, SourceOptimizer, StateValue};
use crate::gpt2_names::{self, Gpt2Parameter, HEAD, NameMeaning};
use crate::plain::PlainValue;
use ckptd_core::snapshot::TensorMeta;

/// A parameter as an optimiser of the source saw it.
#[derive(Clone, Debug)]
pub(super) struct OptimizedParameter {
    /// As the snapshot has it.
    pub meta: TensorMeta,
    /// Its shape in the source.
    pub source_shape: Vec<u64>,
    /// The source has its transpose.
    pub is_turned: bool,
}

const NAMES: &str = "give the optimiser names beside the parameters, AdamW(model.named_parameters()), and save again";

/// The index into `params` of each parameter of the groups, group by group.
///
/// # Errors
/// A clause that names what does not fit.
pub(super) fn assign(state: &SourceOptimizer, params: &[OptimizedParameter]) -> Result<Vec<Vec<usize>>, String> {
    let sizes: Vec<usize> = state.groups.iter().map(|group| group.params.len()).collect();
    let total: usize = sizes.iter().sum();
    let flat = match names(state) {
        Some(names) => by_name(&names, params)?,
        None if total == params.len() => by_order(state, &sizes, params)?,
        None => {
            return Err(format!(
                "its groups have {total} parameters, the model {}: {}",
                params.len(),
                if total < params.len() {
                    "some were frozen (requires_grad=False), and ckptd trains all of them"
                } else {
                    "the others are not part of the language model"
                }
            ));
        }
    };
    let mut rest = flat.as_slice();
    Ok(sizes
        .iter()
        .map(|&size| {
            let (group, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            group.to_vec()
        })
        .collect())
}

/// The name of each parameter of all groups in turn, where all have one.
fn names(state: &SourceOptimizer) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    for group in &state.groups {
        for (i, key) in group.params.iter().enumerate() {
            names.push(match (key, &group.names) {
                (ParameterKey::Name(name), _) => name.as_str(),
                (ParameterKey::Number(_), Some(names)) => names.get(i)?,
                (ParameterKey::Number(_), None) => return None,
            });
        }
    }
    Some(names).filter(|names| !names.is_empty())
}

fn by_name(names: &[&str], params: &[OptimizedParameter]) -> Result<Vec<usize>, String> {
    let places: HashMap<&str, usize> = params.iter().enumerate().map(|(i, p)| (p.meta.name.as_str(), i)).collect();
    let mut taken: HashMap<usize, &str> = HashMap::new();
    let mut order = Vec::with_capacity(names.len());
    for name in names {
        let canonical = match gpt2_names::meaning(name) {
            NameMeaning::Parameter { parameter, .. } => parameter.to_string(),
            NameMeaning::Mask | NameMeaning::Other(_) => (*name).to_owned(),
        };
        let tied = (canonical == HEAD).then(|| places.get(gpt2_names::EMBEDDING)).flatten();
        let place = *places
            .get(canonical.as_str())
            .or(tied)
            .ok_or_else(|| format!("its groups name {name}, which is no parameter of the model"))?;
        if let Some(other) = taken.insert(place, name) {
            return Err(format!("its groups name {other} and {name}, which are one parameter"));
        }
        order.push(place);
    }
    match (0..params.len()).find(|place| !taken.contains_key(place)) {
        None => Ok(order),
        Some(place) => Err(format!(
            "its groups do not name {}: it was frozen (requires_grad=False), and ckptd trains all parameters",
            params[place].meta.name
        )),
    }
}

fn by_order(state: &SourceOptimizer, sizes: &[usize], params: &[OptimizedParameter]) -> Result<Vec<usize>, String> {
    let shapes = shapes(state);
    let fits = |order: &Vec<usize>| {
        order.iter().zip(&shapes).all(|(&place, shape)| shape.is_none_or(|shape| *shape == params[place].source_shape))
    };
    let all = orders(state, sizes, params);
    let mut fitting: Vec<&Vec<usize>> = all.iter().filter(|order| fits(order)).collect();
    fitting.dedup();
    fitting.sort();
    fitting.dedup();
    // Without tensors every order is the same.
    if shapes.iter().all(Option::is_none) && !all.is_empty() {
        return Ok(all[0].clone());
    }
    match fitting.as_slice() {
        [order] => Ok((*order).clone()),
        [] => Err(misfit(state, sizes, &shapes, all.first(), params)),
        _ => Err(format!(
            "its groups of {} parameters can be read in {} orders, between which nothing in them decides; {NAMES}",
            shown(sizes),
            fitting.len()
        )),
    }
}

/// Why no order fits: with one that fits the sizes, the first shape that is another.
fn misfit(
    state: &SourceOptimizer,
    sizes: &[usize],
    shapes: &[Option<&Vec<u64>>],
    order: Option<&Vec<usize>>,
    params: &[OptimizedParameter],
) -> String {
    let wrong = order.and_then(|order| {
        let mut pairs = order.iter().zip(shapes).enumerate();
        pairs.find_map(|(at, (&place, shape))| {
            let shape = (*shape).filter(|shape| **shape != params[place].source_shape)?;
            let key = state.groups.iter().flat_map(|group| &group.params).nth(at)?;
            Some(format!(
                "{key} should be {}, but its tensors have the shape {shape:?}, the parameter {:?}",
                params[place].meta.name, params[place].source_shape
            ))
        })
    });
    format!(
        "its groups have {} parameters in an order that is not known{}; {NAMES}",
        shown(sizes),
        wrong.map_or(String::new(), |wrong| format!(" ({wrong})"))
    )
}

fn shown(sizes: &[usize]) -> String {
    if sizes.len() > 8 {
        format!("[{}, {}, ... in {} groups]", sizes[0], sizes[1], sizes.len())
    } else {
        format!("{sizes:?}")
    }
}

/// The shape of what is kept for each parameter of the groups in turn.
fn shapes(state: &SourceOptimizer) -> Vec<Option<&Vec<u64>>> {
    let of_entry: HashMap<&ParameterKey, &Vec<u64>> = state
        .entries
        .iter()
        .filter_map(|(key, entry)| {
            let shape = entry.iter().find_map(|(field, value)| match value {
                StateValue::Tensor(tensor) if field != "step" => Some(&tensor.meta.shape),
                _ => None,
            });
            Some((key, shape?))
        })
        .collect();
    state.groups.iter().flat_map(|group| &group.params).map(|key| of_entry.get(key).copied()).collect()
}

/// The orders of all parameters whose groups have these sizes.
fn orders(state: &SourceOptimizer, sizes: &[usize], params: &[OptimizedParameter]) -> Vec<Vec<usize>> {
    let model: Vec<usize> = (0..params.len()).collect();
    let mut sorted = model.clone();
    sorted.sort_by(|&a, &b| params[a].meta.name.cmp(&params[b].meta.name));
    // Groups that follow one another in the model's order, however they are cut: one, one per layer, one per parameter.
    let mut orders = vec![model.clone()];
    let mut add = |blocks: Vec<Vec<usize>>| {
        if blocks.iter().map(Vec::len).eq(sizes.iter().copied()) {
            orders.push(blocks.concat());
        }
    };
    for base in [model, sorted] {
        let split = |of: &[usize], first: &dyn Fn(usize) -> bool| -> [Vec<usize>; 2] {
            let (yes, no) = of.iter().partition(|&&i| first(i));
            [yes, no]
        };
        let is_matrix = |i: usize| params[i].source_shape.len() >= 2;
        let is_no_bias = |i: usize| !params[i].meta.name.ends_with(".bias");
        let is_linear = |i: usize| {
            let parameter = Gpt2Parameter::parse(&params[i].meta.name);
            parameter.is_some_and(|p| p.is_linear() || p == Gpt2Parameter::Head)
        };
        add(vec![base.clone()]);
        for first in [&is_matrix as &dyn Fn(usize) -> bool, &is_no_bias, &is_linear] {
            let [yes, no] = split(&base, first);
            add(vec![yes.clone(), no.clone()]);
            add(vec![no, yes]);
        }
        for (layers, rest) in by_layer(state, &base, params) {
            let whole = layers.clone();
            add([whole.clone(), vec![rest.clone()]].concat());
            add([vec![rest.clone()], whole].concat());
            let halves: Vec<Vec<usize>> = layers.iter().flat_map(|layer| split(layer, &is_matrix)).collect();
            let rest = split(&rest, &is_matrix).to_vec();
            add([halves.clone(), rest.clone()].concat());
            add([rest, halves].concat());
        }
    }
    orders
}

/// The parameters layer by layer, and those of no layer. Where the groups' learning rates differ, the layers may just
/// as well come from the last to the first.
fn by_layer(
    state: &SourceOptimizer,
    base: &[usize],
    params: &[OptimizedParameter],
) -> Vec<(Vec<Vec<usize>>, Vec<usize>)> {
    let layer = |i: usize| match Gpt2Parameter::parse(&params[i].meta.name) {
        Some(Gpt2Parameter::Block { layer, .. }) => Some(layer),
        _ => None,
    };
    let rest: Vec<usize> = base.iter().copied().filter(|&i| layer(i).is_none()).collect();
    let mut numbers: Vec<u64> = base.iter().filter_map(|&i| layer(i)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let of = |number: u64| base.iter().copied().filter(|&i| layer(i) == Some(number)).collect::<Vec<_>>();
    let layers: Vec<Vec<usize>> = numbers.into_iter().map(of).collect();
    let rates = |key: &str| -> Vec<Option<f64>> {
        state.groups.iter().map(|group| group.option(key).and_then(PlainValue::as_float)).collect()
    };
    let differ = ["lr", "initial_lr"].into_iter().any(|key| rates(key).windows(2).any(|pair| pair[0] != pair[1]));
    let backwards = layers.iter().rev().cloned().collect();
    let mut ways = vec![(layers, rest.clone())];
    if differ {
        ways.push((backwards, rest));
    }
    ways
}
