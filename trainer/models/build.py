"""Config → model."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator

from torch import nn

from common.module_interfaces import HasTokenLoss, TokenLoss
from trainer.models.config import ModelConfig
from trainer.models.declared import wrong_plan, wrong_size
from trainer.models.own import failed
from trainer.models.tuned.config import FinetuneConfig
from trainer.models.tuned.tune import tune

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def build_model(
    cfg: ModelConfig, token_loss: TokenLoss | None = None, finetune: FinetuneConfig | None = None
) -> nn.Module:
    """Return the model that `cfg` describes, on the current default device (`with torch.device("meta"):`).

    Parameters hold torch's default values: the engine draws them by the model's plan.

    token_loss: what modules that compute losses of tokens are to minimise; None: the negative log-likelihood.
    finetune: what fine-tuning adds to the model; None: nothing.

    Raises:
        ValueError: one line: there is no such class, it cannot be made, its plan does not describe it, or it
            holds a module whose result would depend on the layout.
    """
    try:
        made = pkgutil.resolve_name(cfg.model_class)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model.kind={cfg.kind!r}: its model_class {cfg.model_class!r}: {error}") from error
    except Exception as error:  # whatever a user's file does
        raise failed(cfg.kind, f"the import of {cfg.model_class} fails", error) from error
    try:
        model: nn.Module = made(cfg)
    except ValueError:
        raise
    except Exception as error:  # whatever a user's class does
        raise failed(cfg.kind, f"{cfg.model_class} cannot be made", error) from error
    for wrong in _refused(model):
        raise ValueError(f"model.kind={cfg.kind!r}: {wrong}")
    if wrong := wrong_plan(cfg.plan(), model, list(cfg.block_counts().values())):
        raise ValueError(f"model.kind={cfg.kind!r}: {wrong}")
    if ":" in cfg.kind and (wrong := wrong_size(cfg.parameters(), model)):
        raise ValueError(f"model.kind={cfg.kind!r}: {wrong}")
    if token_loss is not None:
        _set_token_loss(model, token_loss, cfg)
    if finetune is not None:
        tune(model, cfg.plan(), finetune)
    return model


def _set_token_loss(model: nn.Module, token_loss: TokenLoss, cfg: ModelConfig) -> None:
    heads = [module for module in model.modules() if isinstance(module, HasTokenLoss)]
    for head in heads:
        head.set_token_loss(token_loss)
    if not heads and token_loss != TokenLoss():
        given = f"objective.z_loss={token_loss.z_loss:g}, label_smoothing={token_loss.label_smoothing:g}"
        raise ValueError(
            f"{given}: no module of model.kind={cfg.kind!r} computes a token's loss with them: set both to 0"
        )


def _refused(model: nn.Module) -> Iterator[str]:
    """Yield what in the model would break law 1, or is no parameter and would be left undefined."""
    for name, module in model.named_modules():
        kind = f"module {name!r} is a {type(module).__name__}"
        if isinstance(module, BATCH_NORMS):
            yield (
                f"{kind}: its result depends on which rows share a micro-batch, so no layout would equal "
                "another: use LayerNorm or GroupNorm"
            )
        if isinstance(module, DROPOUTS) and module.p > 0:
            yield f"{kind}, p={module.p}: it draws from a rank's own generator: leave it out"
    for name, _ in model.named_buffers():
        yield f"buffer {name!r}: make it a parameter, or compute it in forward"
