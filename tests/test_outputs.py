"""What the model returns: features as tensors, transformers' outputs on request, and what its Trainer collects."""

import pytest
import torch
from conftest import FAMILIES, build_model, build_processor, image_inputs, random_picture
from transformers import Trainer, TrainingArguments
from transformers.utils import ModelOutput

MORE = {"output_hidden_states": True, "output_attentions": True}


def family_inputs(family):
    """Make a family's composed inputs, its images and plain texts."""
    processor = build_processor(pad_to_max_length=family.startswith("siglip"))
    images = image_inputs(family)
    texts = processor(text=["red hat", "a dog"], compose=False)
    return processor(text=["make it night", ""]) | images, images, texts


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_within_the_encoders_output_are_the_features(family, normalize):
    model = build_model(family)
    _, images, texts = family_inputs(family)
    for method, inputs in ((model.get_image_features, images), (model.get_text_features, texts)):
        features = method(**inputs, normalize=normalize)
        output = method(**inputs, normalize=normalize, return_dict=True)
        assert torch.is_tensor(features) and isinstance(output, ModelOutput)
        assert torch.equal(output.pooler_output, features)
        assert output.last_hidden_state.shape[0] == 2
        from_tuple = method(**inputs, normalize=normalize, return_dict=False)
        assert isinstance(from_tuple, tuple) and torch.equal(from_tuple[1], features)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_and_attentions_of_every_encoder(family):
    model = build_model(family, attn_implementation="eager")
    composed, images, texts = family_inputs(family)
    plain = model(**composed)
    assert plain.hidden_states is None and plain.attentions is None
    outputs = model.get_image_features(**images, **MORE), model.get_text_features(**texts, **MORE)
    for output, reference in zip((*outputs, model(**composed, **MORE)), (images, texts, composed), strict=True):
        assert len(output.hidden_states) == 3 and len(output.attentions) == 2
        assert all(state.shape[0] == 2 and state.shape[-1] == 32 for state in output.hidden_states)
        if "input_ids" in reference:
            assert output.hidden_states[0].shape[1] == reference["input_ids"].shape[1]
    assert torch.equal(model(**composed, **MORE).query_features, plain.query_features)


@torch.no_grad()
def test_the_prompts_hidden_states_hold_the_pseudo_tokens(model):
    composed, _, _ = family_inputs("clip")
    output = model(**composed, output_hidden_states=True)
    is_placeholder = composed["input_ids"] == model.config.placeholder_token_id
    positions = model.encoder.text_model.embeddings.position_embedding.weight[: is_placeholder.shape[1]]
    found = (output.hidden_states[0] - positions)[is_placeholder]  # (2 K, H)
    torch.testing.assert_close(found, output.pseudo_tokens.flatten(0, 1))


@torch.no_grad()
def test_the_config_asks_for_outputs_and_the_call_decides(model):
    composed, images, _ = family_inputs("clip")
    model.config.output_hidden_states = True
    assert len(model(**composed).hidden_states) == 3
    assert model(**composed, output_hidden_states=False).hidden_states is None
    assert torch.is_tensor(model.get_image_features(**images))  # a config never changes the type of features
    model.config.return_dict = False
    assert isinstance(model(**composed), tuple)
    assert model(**composed, return_dict=True).loss > 0


@torch.no_grad()
def test_the_tuple_is_the_output(model):
    composed, _, _ = family_inputs("clip")
    expected = model(**composed)
    for found, value in zip(model(**composed, return_dict=False), expected.values(), strict=True):
        assert torch.equal(found, value)


@pytest.mark.parametrize("settings", [{}, {"output_hidden_states": True}])
def test_transformers_own_trainer_predicts_without_pseudo_tokens(model, tmp_path, settings):
    for name, value in settings.items():
        setattr(model.config, name, value)
    processor = build_processor()
    texts = ["red", "make it night", "", "dog", "cat"]  # the last batch has one row
    rows = [{"image": random_picture(i), "text": text} for i, text in enumerate(texts)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )

    def collate(batch):
        return processor(images=[row["image"] for row in batch], text=[row["text"] for row in batch])

    seen = []
    trainer = Trainer(
        model,
        arguments,
        eval_dataset=rows,
        data_collator=collate,
        compute_metrics=lambda prediction: seen.append(prediction.predictions) or {"num_queries": 5},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_num_queries"] == 5 and metrics["eval_loss"] > 0
    logits, queries, targets = trainer.predict(rows).predictions
    assert logits.shape == (5, 2) and queries.shape == targets.shape == (5, 24)
    assert [value.shape for value in seen[0]] == [logits.shape, queries.shape, targets.shape]
    with torch.no_grad():
        expected = model.get_composed_features(**collate(rows))
    torch.testing.assert_close(torch.from_numpy(queries), expected, rtol=0, atol=1e-5)
