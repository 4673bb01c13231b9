# One cell of a Colab notebook: run it again whenever the session was taken away. See docs/sessions.md.
# In the drive, ckptd/ holds bin/ (ckptd, ckptd-gpt2), data/, finetune.toml; the store comes to lie there, too.
# On Kaggle there is no drive to mount: read bin/ and data/ from a dataset under /kaggle/input, put the store under
# /kaggle/working, save the notebook's output, and add it as a dataset to the next session.
import os
import shutil
import subprocess

home = '/content/drive/MyDrive/ckptd'
if not os.path.isdir('/content/drive/MyDrive'):
    from google.colab import drive

    drive.mount('/content/drive')
subprocess.check_call(['pip', 'install', '-q', '--no-deps', 'torch==2.11.0'])
# Programs cannot be run from the drive, and data is read faster from the machine's own disk.
shutil.copytree(home, '/content/job', ignore=shutil.ignore_patterns('store'), dirs_exist_ok=True)
for program in ('ckptd', 'ckptd-gpt2'):
    os.chmod(f'/content/job/bin/{program}', 0o755)
import torch

libraries = os.path.join(os.path.dirname(torch.__file__), 'lib')
# finetune.toml: [job] store = "/content/drive/MyDrive/ckptd/store", [session] budget = "11h30m".
code = subprocess.call(
    ['/content/job/bin/ckptd', 'run', '/content/job/finetune.toml'],
    env={**os.environ, 'LD_LIBRARY_PATH': libraries},
)
print({0: 'The training is complete.', 75: 'Run this cell again.'}.get(code, f'Failed with exit code {code}.'))
