"""Turn other projects' checkpoints into this project's files, and one of this project into a policy of LeRobot.

    python scripts/convert_checkpoint.py IN.ckpt OUT
    python scripts/convert_checkpoint.py --to-lerobot IN OUT   # OUT is for lerobot-eval --policy.path=OUT

What IN is decides what OUT becomes:
    a policy of the paper's published code    a checkpoint folder for eval_sim.py and init_from=OUT
    a UVA that LeRobot has saved (a folder)   the same; plugins/lerobot_policy_uva is needed for both directions
    its stage-1 weights, or MAR's checkpoint  a folder with what a new run can start from: init_from=OUT
    kl-f16 (kl16.ckpt, or latent diffusion's) a file OUT.safetensors for vae.weights=OUT.safetensors

IN is read as data: nothing in it is executed, and a file that asks for more than plain data is refused. OUT appears
whole or not at all.
"""

from pathlib import Path

from unified_video_action.workspace.commands import script_parser


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="checkpoint of another project")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder or file to make; it must not exist yet")
    parser.add_argument("--to-lerobot", action="store_true", help="IN is a checkpoint folder of this project")
    args = parser.parse_args()
    from unified_video_action.workspace.converting import convert

    try:
        convert(args.source, args.target, args.to_lerobot)
    except (OSError, ValueError) as error:
        prefix = "" if str(args.source) in str(error) else f"{args.source}: "
        parser.exit(1, f"{parser.prog}: {prefix}{error}\n")


if __name__ == "__main__":
    main()
