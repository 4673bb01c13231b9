"""Writes a GPT-2 of 124 M parameters as transformers makes it, with random weights: `make_gpt2.py FOLDER`."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(124)
GPT2LMHeadModel(GPT2Config()).save_pretrained(sys.argv[1])
