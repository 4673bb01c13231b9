"""Shows the scalars of a folder of event files by TensorBoard's own reader: one line of JSON for each line of input.

    read_tensorboard.py FOLDER

{"loss/train": [[step, value], ...], ..., "job": the text of the job, "hyperparameters": {...}, "data server": {...}}
"""

import json
import sys
import time

from tensorboard import context
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.data import server_ingester
from tensorboard.plugins.hparams import metadata
from tensorboard.util.grpc_util import ChannelCredsType


def of_data_server(folder):
    """What TensorBoard's data server, which is another program, makes of the same files."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(), folder, reload_interval=1, channel_creds_type=ChannelCredsType.LOCAL,
        samples_per_plugin={'scalars': 0})
    ingester.start()
    ask, seen = context.RequestContext(), None
    # It reads in the background: what has not changed for a while is all.
    for _ in range(40):
        runs = ingester.data_provider.read_scalars(ask, experiment_id='', plugin_name='scalars', downsample=1 << 20)
        found = {tag: [[at.step, at.value] for at in points] for tags in runs.values() for tag, points in tags.items()}
        if found and found == seen:
            return found
        seen = found
        time.sleep(0.5)
    return seen


def hyperparameters(accumulator):
    values = {}
    for content in accumulator.PluginTagToContent(metadata.PLUGIN_NAME).values():
        for name, value in metadata.parse_session_start_info_plugin_data(content).hparams.items():
            values[name] = getattr(value, value.WhichOneof('kind'))
    return values


accumulator = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0})
for _ in sys.stdin:
    accumulator.Reload()
    tags = accumulator.Tags()
    shown = {tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in tags['scalars']}
    texts = [tag for tag in tags['tensors'] if tag.startswith('job/')]
    shown['job'] = accumulator.Tensors(texts[0])[-1].tensor_proto.string_val[0].decode() if texts else None
    shown['hyperparameters'] = hyperparameters(accumulator)
    shown['data server'] = of_data_server(sys.argv[1])
    print(json.dumps(shown), flush=True)
