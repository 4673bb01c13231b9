# One cell of a Colab notebook: run it again whenever the session was taken away. See docs/sessions.md.
# In the drive, ckptd/ holds bin/ (ckptd, ckptd-gpt2), data/ and finetune.toml with
#   [remote] url = "file:///content/drive/MyDrive/ckptd/remote", [snapshot] every = "5m", [session] budget = "11h30m"
# On Kaggle there is no drive to mount: read bin/ and data/ from a dataset under /kaggle/input, put the remote under
# /kaggle/working, save the notebook's output, and add it as a dataset to the next session.
import os, shutil, subprocess

home = '/content/drive/MyDrive/ckptd'
if not os.path.isdir('/content/drive/MyDrive'):
    from google.colab import drive

    drive.mount('/content/drive')
# The libtorch that the worker was built with, beside Colab's own.
packages = ['torch==2.11.0', 'nvidia-cuda-runtime==13.0.*', 'nvidia-cuda-cupti==13.0.*']
subprocess.check_call(['pip', 'install', '-q', '--no-deps', '--target', '/content/libtorch', *packages])
# Programs cannot be run from the drive, and data is read faster from the machine's own disk.
os.makedirs(f'{home}/remote', exist_ok=True)
shutil.copytree(home, '/content/job', ignore=shutil.ignore_patterns('remote'), dirs_exist_ok=True)
for program in ('ckptd', 'ckptd-gpt2'):
    os.chmod(f'/content/job/bin/{program}', 0o755)
code = subprocess.call(
    ['/content/job/bin/ckptd', 'run', '/content/job/finetune.toml'],
    env={**os.environ, 'LD_LIBRARY_PATH': '/content/libtorch/torch/lib'},
)
print({0: 'The training is complete.', 75: 'Run this cell again.'}.get(code, f'Failed with exit code {code}.'))
