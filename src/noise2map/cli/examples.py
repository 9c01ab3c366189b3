"""Examples of every command, shown at the end of its help and on the page of commands; a test parses them all."""

# Words after ``noise2map`` -> words after ``noise2map`` of a whole command line.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "demo --frames 2 --generator none --bev-model none --out small-demo"),
    "app": ("app", "app runs/mine/final --port 8000"),
    "models": ("models",),
    "predict": (
        "predict photo.png --model freedoom-depth-laplace-tiny --out maps",
        "predict photo.png --model freedoom-depth-laplace-tiny --interval 0.9 --out maps",
        "predict photos --model freedoom-segmentation-tiny --steps 3 --ensemble 4 --out maps",
        "predict panorama.png --model freedoom-segmentation-tiny --size native --memory 2GiB --out maps",
        "predict 'shards/*.tar' --model freedoom-segmentation-tiny --engine ray --workers 8 --out maps",
        "predict walk.mp4 --model freedoom-segmentation-tiny --steps 1 --warm-start 0.7 --out film",
        "predict walk.mp4 --model freedoom-segmentation-tiny --warm-start 0.7 --flow walks/flow --out film",
    ),
    "predict-bev": ("predict-bev 0 1 --model freedoom-bev-completion-tiny --cells all --guesses 4 --out bev",),
    "sample": ("sample --model freedoom-generator-64 --seeds 0-15 --consistency-scale 40 --out drawn",),
    "evaluate": (
        "evaluate --model freedoom-segmentation-tiny --steps 1 3 10",
        "evaluate --model freedoom-segmentation-tiny --dataset folder --root photos --out scores",
        "evaluate --model freedoom-completion-tiny --hide rectangle --steps 3 --refine all uncertain --refine-share 0.3",
    ),
    "evaluate generator": (
        "evaluate generator --model freedoom-generator-64 --references samples --samples 64 --out study --allow-singular",
    ),
    "calibrate": (
        "calibrate freedoom-depth-laplace-tiny --dataset freedoom --root data/freedoom --split val --out calibrated",
        "calibrate runs/mine/final --dataset folder --root photos --out calibrated",
    ),
    "audit": (
        "audit photos --model runs/mine/final --out audit",
        "audit data/freedoom/test --model freedoom-segmentation-tiny --limit 200 --out audit",
    ),
    "train": ("train folder --root photos --task depth", "train freedoom-segmentation-tiny --dry-run", "train --list"),
    "train encoder": ("train encoder freedoom-encoder-tiny --dry-run",),
    "train generator": ("train generator freedoom-generator-64 --root data/freedoom/train",),
    "train depth-prior": ("train depth-prior --root data/freedoom/train --resolution 64",),
    "train depth-predictor": ("train depth-predictor --model freedoom-generator-64 --root data/freedoom/train --counts 10,100",),
    "data freedoom": (
        "data freedoom --split train --frames 20000 --out data/freedoom/train",
        "data freedoom --split test --walks 9 --frames 24 --supersample 4 --out data/walks",
    ),
    "data freedoom-surround": ("data freedoom-surround --split test --samples 270 --out data/surround",),
    "data samples": ("data samples --out frames",),
    "data export": ("data export --layout nyu --from samples --out nyu",),
    "data check": ("data check folder photos --task depth", "data check nyu nyu --sheet sheet.png"),
    "data select": ("data select --from data/freedoom/train --min-brightness 38 --out data/rooms",),
    "data cut-surround": ("data cut-surround surround-test-000085 --from data/surround --out few",),
    "experiment depth-from-generated": (
        "experiment depth-from-generated --model freedoom-generator-64 --real data/train --test data/test --out runs/dfg",
    ),
    "experiment ablation": (
        "experiment ablation all --out runs/ablation --dry-run",
        "experiment ablation scale layers --dataset folder --root mine --encoder runs/mine/final --out runs/ablation",
    ),
    "experiment map-use": (
        "experiment map-use freedoom-segmentation-tiny --out map-use",
        "experiment map-use runs/mine/final --dataset freedoom --root data/freedoom --hide rectangle --cluster map --out map-use",
    ),
    "experiment shifts": ("experiment shifts runs/mine/final --calibrated calibrated --dataset folder --root photos --out shifts",),
    "bench model": ("bench model --model freedoom-segmentation-tiny --size 160x120 --no-compile",),
    "bench attention": ("bench attention --no-compile",),
    "bench gpu": ("bench gpu --out gpu", "bench gpu --toy --no-compile --device cpu --rounds 1 --out toy"),
    "bench guidance": ("bench guidance --channels 64 --size 128", "bench guidance --model freedoom-generator-64 --batch-size 8"),
    "bench bev": ("bench bev --cells 256 --no-memory",),
    "convert ddp": ("convert ddp ddp_swin_t_ade20k.pth --out ddp-ade20k", "convert ddp yfji/DDP-Weight:FILE.pth --out ddp"),
    "push": ("push freedoom-depth-laplace-tiny me/depth", "push runs/mine/final me/mine --private --license mit"),
    "export": (
        "export freedoom-depth-laplace-tiny --out depth-onnx",
        "export freedoom-segmentation-tiny --weights int8 --out small",
        "export freedoom-depth-laplace-tiny --format torch --out depth-torch",
        "export freedoom-depth-laplace-tiny --format aoti --out depth-aoti",
    ),
    "convert adm": ("convert adm lsun_bedroom.pt --preset lsun-256 --out bedroom",),
}
