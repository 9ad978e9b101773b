"""How alike two phrases are: cosine of the mean of BERT's last states, as caption grounding asks for in its recall."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.metrics.text import cosine_similarity

BATCH = 64


class PhraseEncoder:
    """bert-base-uncased (or another BERT) from a folder with config.json, model.safetensors and its tokenizer's files.

    Nothing is downloaded and no pickled weights are read. ValueError if the folder is no such one, or lacks weights.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        from transformers import AutoTokenizer, BertModel

        needs = f"{folder}: needs config.json, model.safetensors and vocab.txt of google-bert/bert-base-uncased"
        if not (Path(folder) / "model.safetensors").is_file():
            raise ValueError(f"{needs}; there is no model.safetensors")
        try:
            loaded: Any = BertModel.from_pretrained(
                folder,
                add_pooling_layer=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{needs}; {error}") from error
        model, about = loaded
        if missing := sorted(
            {*about["missing_keys"], *(str(key) for key in about["mismatched_keys"])}
        ):
            raise ValueError(f"{needs}; {len(missing)} weights are missing, {missing[0]} for one")
        self._model = model.to(device).eval()

    def __call__(self, phrases: Sequence[str]) -> NDArray[np.float64]:
        """[N, D]: mean over all tokens of a phrase, [CLS] and [SEP] among them, as in the released scripts."""
        import torch

        found = [np.zeros((0, self._model.config.hidden_size))]
        for start in range(0, len(phrases), BATCH):
            words = self._tokenizer(
                list(phrases[start : start + BATCH]),
                return_tensors="pt",
                padding=True,
                truncation=True,
            ).to(self._model.device)
            with torch.no_grad():
                states_bld = self._model(**words).last_hidden_state
            there_bl1 = words["attention_mask"][..., None].to(states_bld.dtype)
            found.append(
                ((states_bld * there_bl1).sum(1) / there_bl1.sum(1)).double().cpu().numpy()
            )
        return np.concatenate(found)

    def similarity(
        self, gt_phrases: Sequence[str], pred_phrases: Sequence[str]
    ) -> NDArray[np.float64]:
        """Cosines [G, P], for `gcg_matches` and `gcg_score`."""
        return cosine_similarity(self(gt_phrases), self(pred_phrases))
