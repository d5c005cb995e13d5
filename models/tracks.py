"""Track seeds. The ranges never overlap (a test asserts it): no track that is reported was ever trained on."""

REPORT_TRACKS = range(1_000, 1_100)  # scores in the README
SELECTION_TRACKS = range(500, 600)  # choosing the best controller of a run
ROLLOUT_TRACKS = range(1_000_000, 2_000_000)  # 01: what V and M learn from
EVOLUTION_TRACKS = range(2_000_000, 1_000_000_000)  # 05 and 07: what C is evolved on
