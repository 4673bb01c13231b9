//! Pickles that want to run something, to eat memory, or to point outside.

use super::Case;
use super::craft::*;

pub fn cases() -> Vec<Case> {
    let mut cases = calls();
    cases.extend(machine());
    cases.extend(bombs());
    cases.extend(tensors());
    cases
}

fn pt(name: &str, expect: &'static str, pickle: Vec<u8>) -> Case {
    Case::file(name, expect, torch(&pickle))
}

fn calls() -> Vec<Case> {
    let call = |global: &[u8]| pickle(&[global, b"(", &text("touch PWNED"), b"tR"].concat());
    vec![
        pt("os.system", "refusing global os.system", call(b"cos\nsystem\n")),
        pt("posix.system by stack", "refusing global posix.system", {
            let global = [b"\x8c\x05posix", &b"\x8c\x06system\x93"[..]].concat();
            [b"\x80\x04", &global[..], b"(", &text("touch PWNED"), b"tR."].concat()
        }),
        pt("eval", "refusing global builtins.eval", call(b"cbuiltins\neval\n")),
        pt("getattr", "refusing global builtins.getattr", call(b"cbuiltins\ngetattr\n")),
        pt("import", "refusing global builtins.__import__", call(b"cbuiltins\n__import__\n")),
        pt(
            "numpy",
            "refusing global numpy.core.multiarray._reconstruct",
            call(b"cnumpy.core.multiarray\n_reconstruct\n"),
        ),
        pt("torch.load itself", "refusing global torch.load", call(b"ctorch\nload\n")),
        pt("a module's name with dots", "refusing global torch._utils.os.system", call(b"ctorch._utils\nos.system\n")),
        pt("new object", "refusing global subprocess.Popen", pickle(b"csubprocess\nPopen\n)\x81")),
        pt("a class called", "refusing to call a global that only names a type", call(b"ctorch\nTensor\n")),
        pt(
            "a call of text",
            "a call of something that is no global",
            pickle(&[&text("os.system")[..], b")R"].concat()),
        ),
        pt("a very long global", "refusing global aaaa", {
            let long = "a".repeat(900);
            pickle(format!("c{long}\n{long}\n").as_bytes())
        }),
        pt("a global without end", "a name without an end", pickle(&[b"c".to_vec(), vec![b'a'; 5000]].concat())),
        pt("nested rebuilds", "only names a type", {
            let inner = b"ctorch._tensor\n_rebuild_from_type_v2\n".to_vec();
            let arguments = tuple(&[inner.clone(), b"ctorch\nTensor\n".to_vec(), b")".to_vec(), b"}".to_vec()]);
            pickle(&[inner, arguments, b"R".to_vec()].concat())
        }),
    ]
}

fn machine() -> Vec<Case> {
    let refused = |name: &str, expect: &'static str, body: &[u8]| pt(name, expect, pickle(body));
    vec![
        refused("INST", "refusing op-code INST", b"(ios\nsystem\n"),
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
        refused("text beyond the end", "ends in the middle", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"),
        refused("bytes beyond the end", "ends in the middle", b"\x96\xff\xff\xff\xff\xff\xff\xff\xff"),
        refused("number beyond the end", "ends in the middle", b"\x8b\xff\xff\xff\xff"),
        refused("frame beyond the end", "a frame that is longer", b"\x95\xff\xff\xff\xff\xff\xff\xff\x00"),
        refused("text that is not UTF-8", "not UTF-8", b"\x8c\x02\xff\xfe"),
    ]
}

fn bombs() -> Vec<Case> {
    let doubling = |levels: usize| {
        let mut body = b"]".to_vec();
        for _ in 0..levels {
            body.extend(b"q\x00]h\x00ah\x00a");
        }
        pickle(&body)
    };
    let deep = [b"]".repeat(200_000), b"a".repeat(199_999)].concat();
    let long_text = text(&"x".repeat(1 << 20));
    vec![
        pt("memo bomb", "more than 1000000 values", doubling(40)),
        pt("a list within itself", "64 deep", pickle(b"]q\x00h\x00a")),
        pt("lists 200000 deep", "64 deep", pickle(&deep)),
        pt("marks without end", "ends in the middle", [&b"\x80\x02"[..], &b"(".repeat(900_000)].concat()),
        pt("too many op-codes", "more than 1000000 op-codes", pickle(&b"N0".repeat(600_000))),
        pt("sparse memo", "holds None, not a state_dict", {
            let puts = (0..150_000u32).flat_map(|i| [&b"r"[..], &i.wrapping_mul(2_654_435_761).to_le_bytes()].concat());
            pickle(&[b"N".to_vec(), puts.collect()].concat())
        }),
        pt("one long text many times", "holds a list, not a state_dict", {
            let body = [&b"]("[..], &long_text, b"q\x00", &b"h\x00".repeat(400_000), b"e"].concat();
            pickle(&body)
        }),
        pt("a pickle of 17 MiB", "at most 16777216 are read", vec![b'N'; 17 << 20]),
        pt("70000 tensors", "more than 65536 tensors", {
            let arguments = tuple(&[storage("FloatStorage", "0", 16), int(0), ints(&[4]), ints(&[1])]);
            let body = [
                &b"ctorch._utils\n_rebuild_tensor_v2\nq\x00"[..],
                &arguments,
                b"q\x01",
                &b"h\x00h\x01R0".repeat(70_000),
            ];
            pickle(&body.concat())
        }),
    ]
}

fn tensors() -> Vec<Case> {
    let float = || storage("FloatStorage", "0", 16);
    let one = |name: &str, expect: &'static str, tensor: Vec<u8>| pt(name, expect, pickle(&state(tensor)));
    vec![
        one("offset beyond the storage", "does not lie within storage 0", tensor(&float(), 13, &[4], &[1])),
        one("stride beyond the storage", "does not lie within storage 0", tensor(&float(), 0, &[4], &[6])),
        one("a shape that overflows", "does not lie within", tensor(&float(), 0, &[1 << 40, 1 << 40], &[1, 1])),
        one("strides that overflow", "does not lie within", tensor(&float(), 0, &[2, 2], &[i64::MAX, i64::MAX])),
        one("an offset that overflows", "does not lie within", tensor(&float(), i64::MAX, &[2], &[1])),
        one("a negative shape", "negative size", tensor(&float(), 0, &[-4], &[1])),
        one("a negative offset", "negative size", tensor(&float(), -1, &[4], &[1])),
        one("terabytes of one value", "does not lie within", tensor(&float(), 0, &[1 << 40], &[0])),
        one("an empty tensor beyond the end", "does not lie within", tensor(&float(), 17, &[0], &[1])),
        one("shape and strides of two lengths", "with the strides", tensor(&float(), 0, &[2, 2], &[1])),
        one("seventeen dimensions", "at most 16", tensor(&float(), 0, &[1; 17], &[1; 17])),
        one(
            "a storage that is not there",
            "is not in the archive",
            tensor(&storage("FloatStorage", "9", 16), 0, &[1], &[1]),
        ),
        one(
            "a key that climbs",
            "is not in the archive",
            tensor(&storage("FloatStorage", "../data.pkl", 16), 0, &[1], &[1]),
        ),
        one(
            "a storage of another size",
            "its record has 64 bytes",
            tensor(&storage("FloatStorage", "0", 17), 0, &[1], &[1]),
        ),
        one(
            "a storage of absurd size",
            "its record has",
            tensor(&storage("FloatStorage", "0", i64::MAX), 0, &[1], &[1]),
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
            "a name without end",
            "has 600 bytes",
            pickle(&dict(&[(text(&"n".repeat(600)), tensor(&float(), 0, &[1], &[1]))])),
        ),
        many_views("a thousand views of one megabyte", [512, 512], [512, 1]),
        many_views("a thousand transposed copies of one megabyte", [512, 512], [1, 512]),
    ]
}

/// A megabyte that a thousand names refer to.
fn many_views(name: &str, shape: [i64; 2], stride: [i64; 2]) -> Case {
    let storage = storage("FloatStorage", "0", 1 << 18);
    let items: Vec<_> = (0..1000).map(|i| (text(&format!("t{i}")), tensor(&storage, 0, &shape, &stride))).collect();
    Case::file(
        name,
        "many times the file's own size",
        torch_with(&pickle(&dict(&items)), &[("data/0", vec![0; 1 << 20])]),
    )
}
