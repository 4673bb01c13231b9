"""Loads, with transformers, the tokenizer and the model of a folder that ckptd exported of its own training, offline; a
warning of any kind is an error. Arguments: the folder, a text. Prints the text's tokens as JSON."""

import json
import logging
import sys
import warnings

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, text = sys.argv[1:]
warnings.simplefilter("error")


class Strict(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            sys.exit(f"transformers warns: {record.getMessage()}")


transformers.logging.get_logger("transformers").addHandler(Strict())
tokenizer = AutoTokenizer.from_pretrained(folder)
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
assert not any(info.values()), info
tokens = tokenizer(text)["input_ids"]
assert tokenizer.decode(tokens) == text
assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
print(json.dumps(tokens))
