#!/usr/bin/env python3
"""Forwards a job to Weights & Biases, one run over all sessions: forward_wandb.py STORE [PROJECT]"""
import json, subprocess, sys, wandb

KEYS = ('step', 'loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'val_loss')
follow = ['ckptd', 'history', sys.argv[1], '--json', '--follow']
run = None
for line in subprocess.Popen(follow, stdout=subprocess.PIPE, text=True).stdout:
    row = json.loads(line)
    if row['event'] == 'session_started' and (run is None or run.id != row['run']):
        run = wandb.init(project=(sys.argv[2:] or ['ckptd'])[0], id=row['run'], resume='allow')
        run.define_metric('*', step_metric='step')
    elif row['event'] in ('step', 'evaluated'):
        run.log({key: row[key] for key in KEYS if row.get(key) is not None})
