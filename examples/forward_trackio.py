#!/usr/bin/env python3
"""Forwards a job to trackio, one run over all sessions: forward_trackio.py STORE [PROJECT]"""
import json, subprocess, sys, trackio

KEYS = ('loss', 'learning_rate', 'grad_norm', 'tokens_per_second', 'val_loss')
follow = ['ckptd', 'history', sys.argv[1], '--json', '--follow']
name = None
for line in subprocess.Popen(follow, stdout=subprocess.PIPE, text=True).stdout:
    row = json.loads(line)
    if row['event'] == 'session_started' and name != row['run']:
        name = row['run']
        trackio.init(project=(sys.argv[2:] or ['ckptd'])[0], name=name, resume='allow')
    elif row['event'] in ('step', 'evaluated'):
        trackio.log({key: row[key] for key in KEYS if row.get(key) is not None}, step=row['step'])
