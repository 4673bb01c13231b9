"""Shows the scalars of a folder of event files by TensorBoard's own reader: one line of JSON for each line of input.

    read_tensorboard.py FOLDER

{"loss/train": [[step, value], ...], ..., "job": the text of the job}
"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

accumulator = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0})
for _ in sys.stdin:
    accumulator.Reload()
    tags = accumulator.Tags()
    shown = {tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in tags['scalars']}
    texts = [tag for tag in tags['tensors'] if tag.startswith('job/')]
    shown['job'] = accumulator.Tensors(texts[0])[-1].tensor_proto.string_val[0].decode() if texts else None
    print(json.dumps(shown), flush=True)
