"""Lightning: validation twice an epoch, early stopping, a schedule by step.

ckptd run -- python lightning_fit.py
"""

import lightning
import torch
import torch.nn.functional as F
from ckptd.lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

lightning.seed_everything(0)
torch.set_num_threads(1)


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 16, generator=generator), torch.randint(4, (count,), generator=generator))


run = Callback()
trainer = lightning.Trainer(
    accelerator="cpu",
    max_epochs=4,
    accumulate_grad_batches=2,
    val_check_interval=0.5,
    callbacks=[run, EarlyStopping("val_loss", patience=100)],
    enable_progress_bar=False,
    enable_model_summary=False,
    logger=False,
)
loader = DataLoader(drawn(640, 1), batch_size=8, shuffle=True)
trainer.fit(Classifier(), run.loader(loader), DataLoader(drawn(64, 2), batch_size=32), ckpt_path=run.checkpoint())
print(f"{trainer.global_step} steps")
