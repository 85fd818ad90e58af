"""Scores against per-pair loops in float64, and rankings that leave out who has nothing to say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m3lib.errors import InputError
from m3lib.retrieval import metrics
from m3lib.retrieval import ranking as retrieval
from m3lib.retrieval.ranking import Embeddings
from reference import as_float64
from tiny import TAXONOMY, generator, make_prepared, random_labels, unit_rows

N, M, D = TAXONOMY.num_attributes, TAXONOMY.num_classes, 6
SCORES = ["attribute", "segment", "soft_segment", "concat", "top_class", "weighted", "posterior"]


def make_embeddings(rows: np.ndarray | int, seed: int = 0) -> Embeddings:
    rows = np.arange(rows) if isinstance(rows, int) else rows
    posterior = torch.rand(len(rows), M, generator=generator(seed)).half()
    attribute, classes = unit_rows(len(rows), N, D, seed=seed + 1), unit_rows(len(rows), M, D, seed=seed + 2)
    return Embeddings(torch.from_numpy(rows), attribute.half(), posterior, classes.half())


def naive_similarity(score: str, query: Embeddings, candidate: Embeddings, i: int, j: int, n: int) -> float:
    """Of query i and candidate j under attribute n, from similarity's docstring."""
    own = [m for m in range(M) if TAXONOMY.attribute_of_class[m] == n]
    alike = as_float64(query.attribute[i, n]) @ as_float64(candidate.attribute[j, n])
    cos = {m: as_float64(query.classes[i, m]) @ as_float64(candidate.classes[j, m]) for m in own}
    p_q, p_c = ({m: float(e.posterior[row, m]) for m in own} for e, row in ((query, i), (candidate, j)))
    return {
        "attribute": alike,
        "segment": alike + 2 * (max(own, key=p_q.get) == max(own, key=p_c.get)),
        "soft_segment": 0.5 * alike + 0.5 * sum(p_q[m] * p_c[m] for m in own),
        "concat": sum(cos.values()) / len(own),
        "top_class": cos[max(own, key=lambda m: p_q[m])],
        "weighted": sum(p_q[m] * p_c[m] * (1 + cos[m]) / 2 for m in own),
        "posterior": sum(p_q[m] * p_c[m] for m in own),
    }[score]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("attribute", range(N))
@pytest.mark.parametrize(("part", "piece"), [(4096, 8192), (2 * D, 4)])
def test_scores_against_a_loop_over_pairs(score, attribute, part, piece, monkeypatch):
    monkeypatch.setattr(retrieval, "PART", part)  # classes in several parts, candidates in several pieces
    monkeypatch.setattr(retrieval, "PIECE", piece)
    query, candidate = make_embeddings(7), make_embeddings(9, seed=10)
    got = retrieval.similarity(score, query, candidate, attribute, TAXONOMY)
    assert got.dtype == torch.float32
    expected = [
        [naive_similarity(score, query, candidate, i, j, attribute) for j in range(len(candidate.rows))]
        for i in range(len(query.rows))
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attribute", range(N))
def test_the_querys_segment_comes_first_and_inside_a_segment_the_cosine_counts(attribute):
    query, candidate = make_embeddings(20, seed=3), make_embeddings(40, seed=6)
    order = retrieval.similarity("segment", query, candidate, attribute, TAXONOMY).argsort(dim=1, descending=True)
    own, mixed = TAXONOMY.classes_of(attribute), 0
    for i, ranked in enumerate(order.tolist()):
        segment = int(query.posterior[i, own].argmax())
        inside = [int(candidate.posterior[j, own].argmax()) == segment for j in ranked]
        assert inside == sorted(inside, reverse=True)
        mixed += 0 < sum(inside) < len(inside)
        cosines = [
            float(query.attribute[i, attribute].float() @ candidate.attribute[j, attribute].float()) for j in ranked
        ]
        for part in (cosines[: sum(inside)], cosines[sum(inside) :]):
            assert part == pytest.approx(sorted(part, reverse=True), abs=1e-6)
    assert mixed > 15


ROWS = np.array([1, 4, 5, 9, 12])


def equal(a: Embeddings, b: Embeddings) -> bool:
    pairs = [(vars(a)[key], vars(b)[key]) for key in vars(a)]
    return all(x is y is None or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in pairs)


@pytest.mark.parametrize("absent", [[], ["attribute"], ["posterior", "classes"]])
def test_embeddings_saved_and_loaded_are_the_same(tmp_path, absent):
    embeddings = replace(make_embeddings(ROWS), **dict.fromkeys(absent))
    embeddings.save(tmp_path / "e.safetensors")
    assert equal(Embeddings.load(tmp_path / "e.safetensors"), embeddings)


def test_embeddings_that_are_views_are_saved_whole(tmp_path):
    shared = retrieval.same_for_every_attribute(ROWS, torch.randn(5, D), TAXONOMY)
    shared.save(tmp_path / "e.safetensors")
    assert equal(Embeddings.load(tmp_path / "e.safetensors"), shared)


@pytest.mark.parametrize("spoil", ["missing", "cut", "text"])
def test_embeddings_that_cannot_be_read_are_refused(tmp_path, spoil):
    path = tmp_path / "e.safetensors"
    make_embeddings(ROWS).save(path)
    content = path.read_bytes()
    path.unlink()
    if spoil != "missing":
        path.write_bytes(content[:-40] if spoil == "cut" else b"nothing of the kind")
    with pytest.raises(InputError, match=r"e\.safetensors can't be read .*dvc repro train"):
        Embeddings.load(path)


def good() -> dict[str, torch.Tensor]:
    return {name: part for name, part in vars(make_embeddings(ROWS)).items() if part is not None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": None}, "it holds attribute, classes, posterior, not rows"),
        ({"more": torch.zeros(5)}, "it holds attribute, classes, more"),
        ({"attribute": None, "posterior": None, "classes": None}, "it holds rows, not rows and some of"),
        ({"rows": torch.tensor([1, 4, 4, 9, 12])}, "rows are not rising"),
        ({"rows": torch.arange(5.0)}, "rows are not rising"),
        ({"rows": torch.arange(5)[:, None]}, "rows are not rising"),
        ({"attribute": torch.zeros(4, N, D)}, r"attribute is torch.float32 \[4, 3, 6\] for 5 rows"),
        ({"attribute": torch.zeros(5, D)}, "attribute is"),
        ({"classes": torch.zeros(5, M, D, dtype=torch.int32)}, "classes is torch.int32"),
        ({"posterior": torch.zeros(5, M, 1)}, "posterior is"),
    ],
)
def test_a_file_of_other_tensors_is_told(tmp_path, changes, told):
    tensors = {name: part for name, part in (good() | changes).items() if part is not None}
    save_file(tensors, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match=rf"e\.safetensors can't be read as embeddings \(.*{told}.*\); run `dvc repro"):
        Embeddings.load(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    ("changes", "score", "told"),
    [
        ({"attribute": None}, "attribute", "can't give the score attribute; they give concat, top_class"),
        (
            {"posterior": torch.rand(60, M - 1)},
            "posterior",
            f"have {M - 1} of posterior, .* has {M}",
        ),
        (
            {"attribute": torch.rand(60, N + 1, D)},
            "attribute",
            f"have {N + 1} of attribute, .* has {N}; run",
        ),
        ({"classes": torch.rand(60, 2, D)}, "concat", "have 2 of classes"),
    ],
)
def test_embeddings_of_another_taxonomy_or_score_are_told(changes, score, told):
    with pytest.raises(InputError, match=told):
        retrieval.evaluate(make_split(), "test", score, replace(make_embeddings(60), **changes))


def test_take_gives_rows_in_the_order_asked_for():
    embeddings = make_embeddings(ROWS)
    found = embeddings.take(np.array([9, 1, 12, 1]))
    index = [3, 0, 4, 0]
    expected = Embeddings(*(part[index] for part in vars(embeddings).values()))
    assert equal(found, expected)


@pytest.mark.parametrize("rows", [[0], [4, 6], [13], [5, 100]])
def test_take_refuses_rows_that_are_not_there(rows):
    with pytest.raises(InputError, match="don't cover this split; run `dvc repro`"):
        make_embeddings(ROWS).take(np.array(rows))


@pytest.mark.parametrize(
    ("absent", "scores"),
    [
        ([], SCORES),
        (["classes"], ["attribute", "segment", "soft_segment", "posterior"]),
        (["posterior"], ["attribute", "concat"]),
        (["attribute", "classes"], ["posterior"]),
    ],
)
def test_scores_are_those_the_embeddings_can_give(absent, scores):
    assert replace(make_embeddings(3), **dict.fromkeys(absent)).scores == scores


def test_one_vector_serves_every_attribute():
    vectors = torch.randn(5, D, generator=generator())
    found = retrieval.same_for_every_attribute(ROWS, vectors, TAXONOMY)
    for n in range(N):
        torch.testing.assert_close(found.attribute[:, n], vectors / vectors.norm(dim=1, keepdim=True))
    assert found.scores == ["attribute"]


def make_split(size: int = 60, seed: int = 0):
    """Partial labels; train, valid and test, the latter two with queries and candidates."""
    rng = np.random.default_rng(seed)
    kinds = [("train", ""), *[(s, r) for s in ("valid", "test") for r in ("query", "candidate")]]
    return make_prepared(random_labels("partial", size, rng), [kinds[i] for i in rng.integers(0, 5, size)])


def known(prepared, split: str, role: str, attribute: int) -> list[int]:
    manifest, own = prepared.manifest, prepared.taxonomy.classes_of(attribute)
    return [
        i
        for i, row in enumerate(manifest.itertuples())
        if (row.split, row.role) == (split, role) and any(own.start <= m < own.stop for m in row.labels)
    ]


@pytest.mark.parametrize("score", SCORES)
def test_rank_orders_the_known_candidates_by_falling_similarity(score):
    prepared = make_split()
    embeddings = make_embeddings(len(prepared.manifest))
    for n in range(N):
        found = retrieval.rank(prepared, "test", n, score, embeddings, seed=0)
        queries, candidates = (known(prepared, "test", role, n) for role in ("query", "candidate"))
        names = prepared.manifest["image"].to_numpy()[candidates].tolist()
        candidates = [candidates[i] for i in metrics.tie_keys(names).argsort()]  # columns in no order of labels
        assert (found.query_rows.tolist(), found.candidate_rows.tolist()) == (queries, candidates)
        values = retrieval.similarity(score, embeddings.take(queries), embeddings.take(candidates), n, TAXONOMY)
        for line, order in zip(values, found.order(slice(None)), strict=True):
            assert sorted(order.tolist()) == list(range(len(candidates)))
            assert (line[order].diff() <= 0).all()


def test_equal_similarities_fall_by_the_names_hash():
    prepared = make_split()
    flat = retrieval.same_for_every_attribute(np.arange(60), torch.eye(D)[:1].expand(60, -1), TAXONOMY)
    found = retrieval.rank(prepared, "test", 0, "attribute", flat, seed=0)
    names = prepared.manifest["image"].to_numpy()[found.candidate_rows].tolist()
    expected = metrics.tie_keys(names).argsort().tolist()
    assert all(order.tolist() == expected for order in found.order(slice(None)))


def test_the_random_ranking_is_the_seeds_and_the_attributes():
    prepared = make_split()

    def order(n: int, seed: int) -> torch.Tensor:
        return retrieval.rank(prepared, "test", n, "random", None, seed).order(slice(None))

    assert torch.equal(order(0, 1), order(0, 1))
    assert len(order(0, 1).unique(dim=0)) == len(order(0, 1))  # each query draws for itself
    assert not torch.equal(order(0, 1), order(0, 2))
    ranking = retrieval.rank(prepared, "test", 0, "random", None, 1)
    firsts = np.concatenate(
        [retrieval.rank(prepared, "test", 0, "random", None, s).order(slice(None))[:, 0] for s in range(300)]
    )
    counts = np.bincount(firsts, minlength=len(ranking.candidate_rows))
    assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize("score", [*SCORES, "random"])
@pytest.mark.parametrize("relevance", ["pair", "any"])
def test_neither_memory_nor_the_order_of_files_changes_a_bit(score, relevance, monkeypatch):
    monkeypatch.setattr(retrieval, "PART", 2 * D)  # classes in several parts, candidates in several pieces
    monkeypatch.setattr(retrieval, "PIECE", 20)
    prepared, embeddings = make_split(400), make_embeddings(400)
    whole = retrieval.evaluate(prepared, "test", score, embeddings, relevance=relevance)
    assert same_scores(retrieval.evaluate(prepared, "test", score, embeddings, 0, relevance, memory=1), whole)
    assert len(retrieval.rank(prepared, "test", 0, score, embeddings, 0).blocks(1)) > 1
    if score != "random":  # which draws for the rows as they come
        order = np.random.default_rng().permutation(400)
        moved = replace(prepared, manifest=prepared.manifest.iloc[order].reset_index(drop=True))
        shuffled = replace(embeddings.at(torch.from_numpy(order)), rows=torch.arange(400))
        other = retrieval.evaluate(moved, "test", score, shuffled, relevance=relevance)
        for name, scores in whole.items():
            by_image = [
                sorted(zip(part.manifest["image"][queries].tolist(), *values, strict=True))
                for part, found in ((prepared, scores), (moved, other[name]))
                for queries in [np.array(known(part, "test", "query", TAXONOMY.names.index(name)))[found.query]]
                for values in [(found.ap_all, found.ap_100_min, found.recall_100)]
            ]
            assert by_image[0] == by_image[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_query_asked_alone_is_as_like_to_the_bit(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        query, candidate = (Embeddings(torch.arange(n), unit_rows(n, 1, 700, seed=n), None, None) for n in (130, 90))
        whole = retrieval.similarity("attribute", query, candidate, 0, TAXONOMY)
        for some in (slice(0, 1), slice(7, 9), slice(20, 41), slice(129, 130)):
            assert torch.equal(retrieval.similarity("attribute", query.at(some), candidate, 0, TAXONOMY), whole[some])
    finally:
        torch.set_num_threads(before)


def same_scores(a: dict, b: dict) -> bool:
    return all(np.array_equal(vars(a[name])[key], vars(b[name])[key]) for name in a for key in vars(a[name]))


@pytest.mark.parametrize("score", SCORES)
def test_similarity_is_the_product_of_the_vectors(score):
    query, candidate = make_embeddings(7), make_embeddings(9, seed=10)
    for n in range(N):
        vectors = [
            retrieval.query_vectors(score, query, n, TAXONOMY),
            retrieval.candidate_vectors(score, candidate, n, TAXONOMY),
        ]
        alike = retrieval.similarity(score, query, candidate, n, TAXONOMY)
        torch.testing.assert_close(vectors[0] @ vectors[1].T, alike)


def test_a_candidate_is_right_if_any_class_is_shared():
    prepared, embeddings = make_split(200), make_embeddings(200)
    found = retrieval.evaluate(prepared, "test", "attribute", embeddings, relevance="any")
    for n, name in enumerate(TAXONOMY.names):
        own = TAXONOMY.classes_of(n)
        queries, candidates = (known(prepared, "test", role, n) for role in ("query", "candidate"))
        alike = retrieval.similarity("attribute", embeddings.take(queries), embeddings.take(candidates), n, TAXONOMY)
        for i, (row, values) in enumerate(zip(queries, alike.tolist(), strict=True)):
            ranked = [candidates[j] for j in np.argsort(-np.array(values), kind="stable")]
            right = [bool((prepared.labels[row, own] & prepared.labels[c, own]).any()) for c in ranked]
            ranks = [rank for rank, hit in enumerate(right, start=1) if hit]
            ap = sum(j / rank for j, rank in enumerate(ranks, start=1)) / max(1, len(ranks))
            assert found[name].ap_all[i] == pytest.approx(ap)


def test_embeddings_that_are_not_numbers_are_told():
    prepared, embeddings = make_split(), make_embeddings(60)
    embeddings.attribute[known(prepared, "test", "query", 0)[0]] = torch.nan
    with pytest.raises(InputError, match=r"colour, test, score attribute: .*NaN.*"):
        retrieval.evaluate(prepared, "test", "attribute", embeddings)


def test_evaluate_scores_every_known_query_class_pair():
    prepared = make_split()
    scores = retrieval.evaluate(prepared, "test", "weighted", make_embeddings(60))
    assert list(scores) == TAXONOMY.names
    for n, name in enumerate(TAXONOMY.names):
        own = TAXONOMY.classes_of(n)
        pairs = [
            (i, m - own.start)
            for i, row in enumerate(known(prepared, "test", "query", n))
            for m in prepared.manifest["labels"][row]
            if own.start <= m < own.stop
        ]
        found = scores[name]
        assert list(zip(found.query.tolist(), found.class_id.tolist(), strict=True)) == pairs


def test_embeddings_of_the_labels_themselves_rank_without_a_mistake():
    labels = random_labels("single", 60, np.random.default_rng(0))
    prepared = make_prepared(labels, [("test", "query" if i % 3 else "candidate") for i in range(60)])
    exact = Embeddings(torch.arange(60), None, torch.from_numpy(labels).half(), None)
    for scores in retrieval.evaluate(prepared, "test", "posterior", exact).values():
        assert (scores.ap_all[scores.relevant > 0] == 1).all()


def test_class_table_against_a_loop():
    prepared = make_split(90, seed=3)
    scores = retrieval.evaluate(prepared, "test", "attribute", make_embeddings(90))
    table = retrieval.class_table(prepared, "test", scores).set_index(["attribute", "class_"])
    train, expected = prepared.labels[prepared.rows("train")], {}
    for n, (name, found) in enumerate(scores.items()):
        candidates = known(prepared, "test", "candidate", n)
        for m in range(TAXONOMY.num_classes)[TAXONOMY.classes_of(n)]:
            own = found.class_id == m - TAXONOMY.offsets[n]
            if own.any():
                relevant = int(prepared.labels[candidates, m].sum())
                floor = 100 * float(metrics.expected_random_ap(relevant, len(candidates)))
                expected[name, TAXONOMY.class_name(m)] = (train[:, m].sum(), 100 * found.ap_all[own].mean(), floor)
    assert set(table.index) == set(expected)
    for key, values in expected.items():
        assert table.loc[key, ["images", "ap", "floor"]].tolist() == pytest.approx(values)


@pytest.mark.parametrize("source", ["classes", "attribute", "posterior"])
def test_class_points_against_a_loop(source):
    prepared, whole = make_split(80), make_embeddings(80)
    absent = {"classes": [], "attribute": ["classes"], "posterior": ["classes", "attribute"]}[source]
    embeddings = replace(whole, **dict.fromkeys(absent))
    own = TAXONOMY.classes_of(1)
    vectors, names = retrieval.class_points(prepared, embeddings, 1, 1000, np.random.default_rng(0))
    expected = []
    for row in known(prepared, "test", "query", 1) + known(prepared, "test", "candidate", 1):
        for m in prepared.manifest["labels"][row]:
            if own.start <= m < own.stop:
                vector = {"classes": whole.classes[row, m], "attribute": whole.attribute[row, 1]}
                expected.append((TAXONOMY.class_name(m), *vector.get(source, whole.posterior[row, own]).tolist()))
    assert vectors.dtype == np.float32
    got = [(str(name), *vector.tolist()) for name, vector in zip(names, vectors, strict=True)]
    assert sorted(got) == sorted(expected)


def test_class_points_draws_no_more_than_the_limit_and_by_the_seed():
    prepared, embeddings = make_split(80), make_embeddings(80)

    def points(seed: int, limit: int = 7) -> np.ndarray:
        return retrieval.class_points(prepared, embeddings, 1, limit, np.random.default_rng(seed))[0]

    assert len(points(0)) == 7
    assert np.array_equal(points(0), points(0))
    assert not np.array_equal(points(0), points(1))
    assert len(np.unique(points(0), axis=0)) == 7
