//! Pickles that name what is not allowed, exceed a limit, or point outside of their storage.

use super::Case;
use super::craft::*;

pub fn cases() -> Vec<Case> {
    let mut cases = calls();
    cases.extend(machine());
    cases.extend(limits());
    cases.extend(tensors());
    cases
}

fn pt(name: &str, expect: &'static str, pickle: Vec<u8>) -> Case {
    Case::file(name, expect, torch(&pickle))
}

/// Calls of things that are not on the list of globals. Nothing of these names exists, or it does nothing.
fn calls() -> Vec<Case> {
    let call = |global: &[u8]| pickle(&[global, b"(", &text("text"), b"tR"].concat());
    let unlisted = |name: &str, expect: &'static str, global: &str| {
        let (module, thing) = global.split_once(' ').unwrap();
        pt(name, expect, call(format!("c{module}\n{thing}\n").as_bytes()))
    };
    vec![
        unlisted("an unlisted module", "refusing global nosuch.module.Thing:", "nosuch.module Thing"),
        unlisted("an unlisted builtin", "refusing global builtins.nosuch:", "builtins nosuch"),
        unlisted("an unlisted builtin of Python 2", "refusing global __builtin__.nosuch:", "__builtin__ nosuch"),
        unlisted("an unlisted collection", "refusing global collections.nosuch:", "collections nosuch"),
        unlisted("an unlisted codec", "refusing global _codecs.nosuch:", "_codecs nosuch"),
        unlisted("an unlisted name of torch", "refusing global torch.nosuch:", "torch nosuch"),
        unlisted("an unlisted rebuild", "refusing global torch._utils.nosuch:", "torch._utils nosuch"),
        unlisted("an unlisted tensor", "refusing global torch._tensor.nosuch:", "torch._tensor nosuch"),
        unlisted("an unlisted parameter", "refusing global torch.nn.parameter.nosuch:", "torch.nn.parameter nosuch"),
        unlisted("a name with dots", "refusing global torch._utils.nosuch.thing:", "torch._utils nosuch.thing"),
        pt("a global by stack", "refusing global nosuch.module.Thing:", {
            let global = [b"\x8c\x0dnosuch.module", &b"\x8c\x05Thing\x93"[..]].concat();
            [b"\x80\x04", &global[..], b"(", &text("text"), b"tR."].concat()
        }),
        pt("an unlisted module in an entry", "the entry \"extra\" holds an object of it", {
            pickle(&dict(&[(text("model"), b"}".to_vec()), (text("extra"), b"cnosuch.module\nThing\n)R".to_vec())]))
        }),
        pt("a known class of others as the whole", "it holds argparse.Namespace, not a state_dict", {
            pickle(b"cargparse\nNamespace\n)\x81")
        }),
        pt("a global by numbers", "a global whose name is not text", pickle(b"K\x01K\x02\x93")),
        pt("a new object", "refusing global nosuch.module.Thing:", pickle(b"cnosuch.module\nThing\n)\x81")),
        pt("a class called", "refusing to call a global that only names a type", call(b"ctorch\nTensor\n")),
        pt("a call of text", "a call of something that is no global", pickle(&[&text("text")[..], b")R"].concat())),
        pt("a call without a tuple", "arguments that are no tuple", pickle(b"ctorch\nSize\nNR")),
        pt("a parameter of text", "a parameter that is no tensor", call(b"ctorch._utils\n_rebuild_parameter\n")),
        pt("a dict of text", "no dict", call(b"ccollections\nOrderedDict\n")),
        pt("a set of text", "no list", call(b"cbuiltins\nset\n")),
        pt("too few arguments", "wrong arguments", call(b"ctorch._utils\n_rebuild_tensor_v2\n")),
        pt(
            "a subclass without arguments",
            "a tensor without arguments",
            call(b"ctorch._tensor\n_rebuild_from_type_v2\n"),
        ),
        pt("seventeen arguments", "at most 16 make sense", {
            pickle(&[&b"ctorch\nSize\n"[..], &tuple(&vec![int(1); 17]), b"R"].concat())
        }),
        pt("a name of 1024 bytes", "a name without an end", {
            pickle(format!("c{}\nThing\n", "a".repeat(1024)).as_bytes())
        }),
        pt("a rebuild of a rebuild", "only names a type", {
            let inner = b"ctorch._tensor\n_rebuild_from_type_v2\n".to_vec();
            let arguments = tuple(&[inner.clone(), b"ctorch\nTensor\n".to_vec(), b")".to_vec(), b"}".to_vec()]);
            pickle(&[inner, arguments, b"R".to_vec()].concat())
        }),
    ]
}

fn machine() -> Vec<Case> {
    let refused = |name: &str, expect: &'static str, body: &[u8]| pt(name, expect, pickle(body));
    vec![
        refused("INST", "refusing op-code INST", b"(inosuch.module\nThing\n"),
        refused("OBJ", "refusing op-code OBJ", b"(o"),
        refused("EXT1", "refusing op-code EXT1", b"\x82\x01"),
        refused("PERSID", "refusing op-code PERSID", b"Pkey\n"),
        refused("NEXT_BUFFER", "refusing op-code NEXT_BUFFER", b"\x97"),
        refused("NEWOBJ_EX", "refusing op-code NEWOBJ_EX", b"\x92"),
        refused("unknown op-code", "refusing op-code 0xff", b"\xff"),
        pt("protocol 0", "protocol 2 or later", b"(dp0\n.".to_vec()),
        pt("protocol 6", "refusing pickle protocol 6", b"\x80\x06N.".to_vec()),
        pt("empty pickle", "protocol 2 or later", Vec::new()),
        pt("no stop", "ends in the middle", b"\x80\x02}".to_vec()),
        refused("empty stack", "the stack is empty", b""),
        refused("below a mark", "the stack is empty", b"N(0"),
        refused("no mark", "no mark", b"t"),
        refused("memo before it is set", "memo 7 is used before", b"h\x07"),
        refused("items for text", "no list", &[&text("a")[..], b"Na"].concat()),
        refused("keys for a list", "no dict", b"](NNu"),
        refused("a key without a value", "a key without a value", b"}(Nu"),
        refused("attributes of text", "refusing to set attributes", &[&text("a")[..], b"}b"].concat()),
        refused("text beyond the end", "ends in the middle", b"\x8d\x02\0\0\0\0\0\0\0"),
        refused("bytes beyond the end", "ends in the middle", b"\x96\x02\0\0\0\0\0\0\0"),
        refused("number beyond the end", "ends in the middle", b"\x8b\x02\0\0\0"),
        refused("frame beyond the end", "a frame that is longer", b"\x95\x02\0\0\0\0\0\0\0"),
        refused("text that is not UTF-8", "not UTF-8", b"\x8c\x02\xff\xfe"),
    ]
}

/// Files that exceed a limit by one, where the limit is lowered to what the file is short of.
fn limits() -> Vec<Case> {
    // Two lists that are one: its values count as often as the tree has them.
    let shared = pickle(b"](]q\x00K\x01ah\x00e");
    let nested = pickle(b"]]]K\x01aaa");
    let tensors = {
        let arguments = tuple(&[storage("FloatStorage", "0", 16), int(0), ints(&[4]), ints(&[1])]);
        let call = [&b"ctorch._utils\n_rebuild_tensor_v2\n"[..], &arguments, b"R0"].concat();
        pickle(&[&call.repeat(3)[..], b"N"].concat())
    };
    let views = |name: &str, stride: [i64; 2]| {
        let storage = storage("FloatStorage", "0", 1024);
        let items: Vec<_> = (0..3).map(|i| (text(&format!("t{i}")), tensor(&storage, 0, &[32, 32], &stride))).collect();
        let file = torch_with(&pickle(&dict(&items)), &[("data/0", vec![0; 4096])]);
        Case::file(name, "many times the file's own size", file).under(|l| l.sharing = 1)
    };
    vec![
        pt("five values", "more than 4 values", shared).under(|l| l.pickle_values = 4),
        pt("lists three deep", "more than 2 deep", nested).under(|l| l.pickle_depth = 2),
        pt("four op-codes", "more than 3 op-codes", pickle(b"N0N")).under(|l| l.pickle_opcodes = 3),
        pt("three values at once", "more than 2 values at once", pickle(b"NNN")).under(|l| l.pickle_nodes = 2),
        pt("text of four bytes", "more than 3 bytes of text", pickle(&text("four"))).under(|l| l.pickle_text_bytes = 3),
        pt("a pickle of four bytes", "at most 3 are read", pickle(b"N")).under(|l| l.pickle_bytes = 3),
        pt("three tensors", "more than 2 tensors", tensors).under(|l| l.tensors = 2),
        views("views of three times the storage", [32, 1]),
        views("transposed copies of three times the storage", [1, 32]),
        pt("marks without their values", "ends in the middle", b"\x80\x02(((".to_vec()),
        // What follows takes memory by what the file has, not by what it says.
        pt("a memo with one high number", "holds None, not a state_dict", {
            pickle(&[b"Nr", &2_000_000u32.to_le_bytes()[..]].concat())
        }),
        pt("one text in a thousand places", "holds a list, not a state_dict", {
            pickle(&[&b"]("[..], &text(&"x".repeat(16 << 10)), b"q\x00", &b"h\x00".repeat(1000), b"e"].concat())
        }),
    ]
}

fn tensors() -> Vec<Case> {
    let float = || storage("FloatStorage", "0", 16);
    let one = |name: &str, expect: &'static str, tensor: Vec<u8>| pt(name, expect, pickle(&state(tensor)));
    vec![
        one("offset beyond the storage", "does not lie within storage 0", tensor(&float(), 13, &[4], &[1])),
        one("stride beyond the storage", "does not lie within storage 0", tensor(&float(), 1, &[4], &[5])),
        one("a negative shape", "negative size", tensor(&float(), 0, &[-4], &[1])),
        one("a negative offset", "negative size", tensor(&float(), -1, &[4], &[1])),
        one("one value seventeen times", "repeats the values of its storage", tensor(&float(), 0, &[17], &[0])),
        one("an empty tensor beyond the end", "does not lie within", tensor(&float(), 17, &[0], &[1])),
        one("shape and strides of two lengths", "with the strides", tensor(&float(), 0, &[2, 2], &[1])),
        one("seventeen dimensions", "at most 16", tensor(&float(), 0, &[1; 17], &[1; 17])),
        one(
            "a storage that is not there",
            "is not in the archive",
            tensor(&storage("FloatStorage", "9", 16), 0, &[1], &[1]),
        ),
        one(
            "a key of another folder",
            "is not in the archive",
            tensor(&storage("FloatStorage", "a/0", 16), 0, &[1], &[1]),
        ),
        one(
            "a storage of another size",
            "its record has 64 bytes",
            tensor(&storage("FloatStorage", "0", 17), 0, &[1], &[1]),
        ),
        one("a negative storage", "negative size", tensor(&storage("FloatStorage", "0", -16), 0, &[1], &[1])),
        one(
            "a storage of another type",
            "refusing global torch.ComplexFloatStorage",
            tensor(&storage("ComplexFloatStorage", "0", 8), 0, &[1], &[1]),
        ),
        one("an id that is no storage", "names no storage", b"(X\x04\x00\x00\x00evaltQ".to_vec()),
        one("a tensor without a storage", "a tensor without a storage", tensor(b"N", 0, &[1], &[1])),
        pt("one storage in two ways", "described in two ways", {
            let (a, b) = (tensor(&float(), 0, &[1], &[1]), tensor(&storage("LongStorage", "0", 8), 0, &[1], &[1]));
            pickle(&dict(&[(text("a"), a), (text("b"), b)]))
        }),
        pt("one key twice", "occurs twice", {
            let a = || (text("a"), tensor(&float(), 0, &[1], &[1]));
            pickle(&dict(&[a(), a()]))
        }),
        pt("keys that are numbers", "keys are text", pickle(&dict(&[(int(1), tensor(&float(), 0, &[1], &[1]))]))),
        pt("a list for a dict", "holds a list, not a state_dict", pickle(b"]")),
        pt(
            "a name with control characters",
            "control characters",
            pickle(&dict(&[(text("a\nb"), tensor(&float(), 0, &[1], &[1]))])),
        ),
        pt(
            "a name of 513 bytes",
            "has 513 bytes",
            pickle(&dict(&[(text(&"n".repeat(513)), tensor(&float(), 0, &[1], &[1]))])),
        ),
    ]
}
