#!/usr/bin/env bash
# A tokenizer that transformers 4 has saved is loaded by transformers 5, its end-of-text token is changed, and it is saved
# to the same folder. Loaded again it has the old token. transformers 5 writes neither special_tokens_map.json nor the
# "added_tokens_decoder" of tokenizer_config.json, and lets an older special_tokens_map.json lie. When it loads, it reads
# that file only where tokenizer_config.json has no "added_tokens_decoder", and then it counts more than the newer
# tokenizer_config.json. So the file is passed over before the save, and decides after it. A token that the old file does
# not name, here one for padding, stays. Saved to an empty folder, both are right.
#
# transformers 4.57.6 and 5.23.0 from PyPI, without torch. Seen in November 2026: the end of text "<turn>" is written to
# tokenizer_config.json, and is "</s>" after loading.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes a minute; needs python3 with venv and 1 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
export HF_HUB_OFFLINE=1
for version in 4.57.6 5.23.0; do
  python3 -m venv "python-$version"
  "python-$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
cat >old.py <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "<turn>", "<pad>", "one", "two"])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>").save_pretrained("same-folder")
PY
cat >new.py <<'PY'
import json

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("same-folder")
print("saved by transformers 4, loaded by transformers 5: end of text", tokenizer.eos_token)
tokenizer.eos_token, tokenizer.pad_token = "<turn>", "<pad>"
print("changed to", tokenizer.eos_token, "and padding set to", tokenizer.pad_token)
seen = []
for folder in ("same-folder", "empty-folder"):
    tokenizer.save_pretrained(folder)
    with open(f"{folder}/tokenizer_config.json") as file:
        config = json.load(file)
    loaded = AutoTokenizer.from_pretrained(folder)
    print(f"saved to the {folder}: tokenizer_config.json says {config['eos_token']}, "
          f"loaded: end of text {loaded.eos_token} (id {loaded.eos_token_id}), padding {loaded.pad_token}")
    seen.append((config["eos_token"], loaded.eos_token, loaded.pad_token))
raise SystemExit(seen != [("<turn>", "</s>", "<pad>"), ("<turn>", "<turn>", "<pad>")])
PY
python-4.57.6/bin/python old.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
python-5.23.0/bin/python new.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
