"""``noise2map models``: what ships with the package."""


def models() -> None:
    """List the models that come with the package: task, size, one score, what they cannot do, and where their card is.

    Any of the names is a ``--model`` of the other commands.
    """
    from noise2map.report.tables import text_table
    from noise2map.zoo import shipped_models

    found = shipped_models()
    if not found:
        print("no models in this installation")
        return
    rows = [
        {
            "name": one.name,
            "task": one.task,
            "parameters": f"{one.parameters / 1e6:.1f}M",
            "MB": round(one.megabytes, 1),
            "score": one.score,
        }
        for one in found
    ]
    print(text_table(rows, digits=3))
    for one in found:
        print(f"\n{one.name}\n  limit: {one.limit}\n  card:  {one.card}")
