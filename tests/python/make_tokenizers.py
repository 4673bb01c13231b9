"""Makes model folders with odd tokenizers, and with transformers the ids of random texts. Arguments: a folder, how many
texts. Leaves in it one folder per tokenizer and, beside it, NAME.json: {"texts": [...], "ids": [[...], ...],
"eos": id or null}, ids null where transformers raises."""

import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

target, count = Path(sys.argv[1]), int(sys.argv[2])
END = "<|endoftext|>"
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
WORDS = ["the", "cat", "Hat", "naïve", "ÉCOLE", "don't", "we'll", "12", "345", "ﬁn", "２３", "日本", "語。", "где", "ж", "😀"]
PARTS = [" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", ",", ".", "--", "é", "e\u0301", "<", ">",
         "<SEP>", "<eos>", END, "[X]", "zz", "▁", "Ġ", "\u200b", "ǅ", "İ"]
CORPUS = [" ".join(random.Random(seed).choices(WORDS[:9], k=30)) for seed in range(40)]


def text(rng):
    return "".join(rng.choice(WORDS if rng.random() < 0.55 else PARTS) for _ in range(rng.randint(0, 24)))


def bpe(prefix=False, specials=(END,), **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=list(specials), initial_alphabet=ALPHABET, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def letters(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def folder(name):
    path = target / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    return path


def raw(name, tokenizer, **config):
    path = folder(name)
    tokenizer.save(str(path / "tokenizer.json"))
    if config:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def fast(name, tokenizer, **tokens):
    path = folder(name)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(path)
    return path


def vocab_and_merges(name, **documents):
    path = folder(name)
    bpe().model.save(str(path))
    for document, value in documents.items():
        (path / f"{document}.json").write_text(json.dumps(value))
    return path


def make():
    raw("plain", bpe())
    raw("prefix-said-by-json-alone", bpe(prefix=True))
    raw("prefix-said-by-config", bpe(), add_prefix_space=True)
    fast("prefix-backend", bpe(prefix=True), eos_token=END)
    raw("prefix-config-backend", bpe(), tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=True)

    tokenizer = bpe(specials=(END, "<eos>"))
    tokenizer.add_tokens([AddedToken("<SEP>", lstrip=True), AddedToken("zz", single_word=True), AddedToken("é", normalized=False)])
    fast("added-lstrip-single-word", tokenizer, eos_token="<eos>")
    tokenizer = bpe()
    tokenizer.add_special_tokens([AddedToken("<SEP>", rstrip=True, special=True)])
    fast("added-rstrip", tokenizer, eos_token="<SEP>")
    tokenizer = bpe()
    tokenizer.add_tokens([AddedToken("Hat", normalized=True), AddedToken("the cat")])
    tokenizer.normalizer = normalizers.Lowercase()
    fast("added-normalized", tokenizer)

    vocab_and_merges("vocab-merges")
    vocab_and_merges("vocab-merges-config", tokenizer_config={"add_prefix_space": True, "eos_token": "<eos>"})
    size = 340
    special = {"content": "<SEP>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    vocab_and_merges("vocab-merges-legacy", added_tokens={"<SEP>": size, "zz": size + 1},
                     special_tokens_map={"eos_token": special, "additional_special_tokens": ["[X]"]})
    token = {"content": "[X]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    vocab_and_merges("vocab-merges-decoder", tokenizer_config={
        "tokenizer_class": "GPT2Tokenizer", "eos_token": "[X]", "pad_token": "<pad>", "additional_special_tokens": ["<SEP>"],
        "added_tokens_decoder": {str(size): token}})
    own = {"zeta_token": "[X]", "extra_special_tokens": {"y_name": "<eos>", "b_token": "<"}, "alpha_token": "<SEP>",
           "marked_token": {"__type": "AddedToken", "content": "zz", "lstrip": True}, "plain_token": {"content": ">"}}
    vocab_and_merges("own-tokens-in-order", tokenizer_config=own)
    vocab_and_merges("own-tokens-of-two-documents", tokenizer_config=own | {"mask_token": "--"}, special_tokens_map={
        "yankee_token": {"content": "Ġ", "rstrip": True}, "beta_token": "▁", "alpha_token": "é",
        "extra_special_tokens": {"w_token": "ж", "a_token": "12"}})
    vocab_and_merges("extra-tokens-of-two-documents", tokenizer_config={"extra_special_tokens": ["zz", "[X]"]},
                     special_tokens_map={"extra_special_tokens": ["<SEP>", "[X]", {"content": "ж", "lstrip": True}]})

    tokenizer = letters(Tokenizer(models.WordPiece(unk_token="[UNK]")),
                        trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    fast("wordpiece", tokenizer, eos_token="[SEP]", unk_token="[UNK]")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    fast("unigram-metaspace", letters(tokenizer, trainer), eos_token="</s>", unk_token="<unk>")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = letters(tokenizer, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False))
    tokenizer.add_special_tokens(["<SEP>"])
    fast("unigram-metaspace-first", tokenizer, unk_token="<unk>")
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast("wordlevel-without-unk", letters(tokenizer, trainers.WordLevelTrainer(special_tokens=["<eos>"], show_progress=False)),
         eos_token="<eos>")
    tokenizer = bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    fast("nfkc-lowercase", tokenizer, eos_token=END)
    raw("normalizer-said-by-json-alone", tokenizer)
    tokenizer = letters(Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=90, special_tokens=["<eos>"], show_progress=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.WhitespaceSplit()])
    fast("bpe-that-drops", tokenizer, eos_token="<eos>")
    tokenizer = letters(Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True)),
                        trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"], show_progress=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    fast("llama-like", tokenizer, unk_token="<unk>")
    fast("special-tokens-split", bpe(specials=(END, "<SEP>")), eos_token=END, split_special_tokens=True)


make()
for path in sorted(path for path in target.iterdir() if path.is_dir()):
    tokenizer = AutoTokenizer.from_pretrained(path)
    rng = random.Random(path.name)
    texts = [text(rng) for _ in range(count)]
    ids = []
    for one in texts:
        try:
            ids.append(tokenizer(one, add_special_tokens=False)["input_ids"])
        except Exception:
            ids.append(None)
    long = "".join(text(rng) for _ in range(40)) if None not in ids else ""
    if long:
        texts.append(long)
        ids.append(tokenizer(long, add_special_tokens=False)["input_ids"])
    path.with_name(path.name + ".json").write_text(json.dumps({"texts": texts, "ids": ids, "eos": tokenizer.eos_token}))
print(len(list(target.glob("*.json"))))
