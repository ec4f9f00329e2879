"""The simulated arm and its table as a MuJoCo model, made of boxes, cylinders and capsules.

Joints, masses and limits are those that the makers of real-stanford/arx5-sdk publish for the X5 with a UMI gripper (its
models/X5_umi.urdf and include/app/config.h). At joints of zero all links' axes are parallel to the base's: x forward,
y left, z up; the table's top is z = 0, on which the arm stands. The upper arm then lies backward, the forearm on top.

The end effector's frame is UMI's: its origin between the finger tips, z along the fingers, x to the right and y down as
the camera on the wrist sees it, and that camera's axes are parallel to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP = 0.002  # seconds of physics, the period of the real arm's own loop


@dataclass(frozen=True)
class Joint:
    """A hinge, and the link that it moves, in axes parallel to the base's when all joints are zero."""

    origin: tuple[float, float, float]  # in the previous link, metres
    axis: tuple[int, int, int]
    low: float  # radians
    high: float
    velocity: float  # radians per second
    torque: float  # newton metres
    stiffness: float  # of the motor's position control, newton metres per radian
    damping: float  # newton metres per radian per second
    mass: float  # of the link, kg
    centre: tuple[float, float, float]  # of its mass
    inertia: tuple[float, float, float]
    geoms: str = ""


UPPER = '<geom class="link" type="capsule" fromto="0 0 0 -.264 0 0" size=".03"/>'
FORE = '<geom class="link" type="capsule" fromto="0 0 0 .1 0 .056 " size=".026"/>'
FORE += '<geom class="link" type="capsule" fromto=".1 0 .056 .245 0 .056" size=".026"/>'
WRIST = '<geom class="link" type="capsule" fromto="0 0 0 .05 0 .05" size=".024"/>'
YOKE = '<geom class="link" type="capsule" fromto="0 0 -.01 0 0 -.075" size=".022"/>'
SHOULDER = '<geom class="link" type="cylinder" fromto="0 0 -.02 0 0 .05" size=".04" rgba=".25 .25 .28 1"/>'

# The damping is more than the maker's gains (5, 5, 5, 1, 1, 1), because the real arm's gears rub.
JOINTS = (
    Joint((0, 0, 0.0603), (0, 0, 1), -3.14, 2.618, 5.0, 30.0, 200, 12, 0.4, (0.006, 0, 0.0175), (8e-4, 3e-4, 7e-4),
          SHOULDER),
    Joint((0.02, 0, 0.0402), (0, 1, 0), -0.05, 3.5, 5.0, 40.0, 200, 12, 1.165, (-0.132, 0, 0), (6e-4, 0.0367, 0.0368),
          UPPER),
    Joint((-0.264, 0, 0), (0, -1, 0), -0.1, 3.2, 5.5, 30.0, 200, 10, 0.546, (0.191, 0, 0.0534),
          (0.0018, 0.0249, 0.0233), FORE),
    Joint((0.245, 0, 0.056), (0, -1, 0), -1.6, 1.55, 5.5, 15.0, 120, 4, 0.081, (0.031, 0, 0.0314),
          (1.8e-4, 2.1e-4, 1.1e-4), WRIST),
    Joint((0.06575, 0, 0.0825), (0, 0, -1), -1.57, 1.57, 5.0, 10.0, 80, 2.5, 0.655, (0.004, 0, -0.0512),
          (0.0025, 0.0025, 2.7e-4), YOKE),
    Joint((0.02845, 0, -0.0825), (1, 0, 0), -2.0, 2.0, 5.0, 10.0, 60, 2, 0.8, (0.054, 0, 0.019),
          (0.0023, 0.0060, 0.0053)),
)  # fmt: skip
EFFECTOR_AT = 0.225  # metres from the last joint to the end effector's origin
GRIPPER = 0.086  # metres, open
GRIPPER_SPEED, GRIPPER_LAG = 0.3, 0.04  # metres per second; seconds by which its motor is behind
GRIPPER_STIFFNESS = 1500.0  # newtons per metre of each finger, which is soft
GIVE = 0.006  # metres that a finger bends before its motor stalls
HOME = np.array([0.0, 1.35, 1.30, -0.85, 0.0, 0.0])  # over the table, looking down at it
CAMERA_ABOVE, CAMERA_BEHIND = 0.086, 0.2197  # metres from the end effector's origin to a GoPro's lens on UMI's mount
FRICTION = "1.2 .01 .0005"
VIEWS = ("wrist", "side")  # the cameras


@dataclass(frozen=True)
class Table:
    """What stands on the table, and where at the start: positions (x, y) in the frame of the arm's base."""

    cup: tuple[float, float] = (0.38, 0.10)
    saucer: tuple[float, float] = (0.38, -0.12)


CUP_RADIUS, CUP_HEIGHT, CUP_MASS = 0.03, 0.075, 0.12
SAUCER_RADIUS, SAUCER_HEIGHT = 0.065, 0.008
COLOURS = {
    "metal": ".72 .73 .76 1", "dark": ".16 .16 .18 1", "finger": ".93 .45 .12 1", "cup": ".86 .16 .18 1",
    "coffee": ".24 .12 .07 1", "saucer": ".96 .96 .93 1",
}  # fmt: skip


def arm_xml(fovy: float = 90.0) -> str:
    """Body elements of the arm: joints joint1 .. joint6, fingers, the site "end_effector" and the camera "wrist"."""
    text = _gripper(fovy)
    for number, joint in reversed(list(enumerate(JOINTS, 1))):
        text = (
            f'<body name="link{number}" pos="{_list(joint.origin)}" gravcomp="1">'
            f'<joint name="joint{number}" axis="{_list(joint.axis)}" range="{joint.low} {joint.high}"/>'
            f'<inertial pos="{_list(joint.centre)}" mass="{joint.mass}" diaginertia="{_list(joint.inertia)}"/>'
            f"{joint.geoms}{text}</body>"
        )
    foot = f'<geom class="link" type="cylinder" fromto="0 0 0 0 0 .06" size=".055" rgba="{COLOURS["dark"]}"/>'
    return f'<body name="base">{foot}{text}</body>'


def model_xml(table: Table | None, fovy: float = 90.0) -> str:
    """The whole model; without a table only the arm, for kinematics."""
    things = "" if table is None else _things(table)
    motors = "".join(
        f'<position name="motor{number}" joint="joint{number}" kp="{joint.stiffness}" kv="{joint.damping}" '
        f'forcerange="{-joint.torque} {joint.torque}"/>'
        for number, joint in enumerate(JOINTS, 1)
    )
    fingers = "".join(
        f'<position name="grip_{side}" joint="finger_{side}" kp="{GRIPPER_STIFFNESS}" kv="30"/>'
        for side in ("left", "right")
    )
    return f"""<mujoco model="arm">
      <compiler angle="radian" autolimits="true"/>
      <option timestep="{STEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
      <visual>
        <global offwidth="1280" offheight="960"/>
        <quality shadowsize="0" offsamples="0" numslices="20" numstacks="8"/>
        <headlight ambient=".42 .42 .42" diffuse=".35 .35 .35" specular="0 0 0"/>
        <map znear=".01" zfar="20"/>
      </visual>
      <default>
        <joint armature=".02" damping=".5"/>
        <geom solref=".01 1"/>
        <default class="link"><geom contype="1" conaffinity="2" group="1" rgba="{COLOURS["metal"]}"/></default>
        <default class="seen"><geom contype="0" conaffinity="0" mass="0"/></default>
        <default class="thing"><geom contype="2" conaffinity="3" friction="{FRICTION}"/></default>
      </default>
      <asset>
        <texture name="sky" type="skybox" builtin="gradient" rgb1=".75 .82 .9" rgb2=".9 .92 .94" width="64"
          height="64"/>
        <texture name="wood" type="2d" builtin="checker" rgb1=".62 .52 .40" rgb2=".55 .45 .34" mark="random"
          markrgb=".45 .36 .27" random=".02" width="256" height="256"/>
        <material name="wood" texture="wood" texrepeat="6 6" texuniform="false" specular="0"/>
      </asset>
      <worldbody>
        <light directional="true" pos="0 0 2" dir=".3 .25 -1" diffuse=".45 .45 .45" castshadow="false"/>
        {arm_xml(fovy)}{things}
      </worldbody>
      <actuator>{motors}{fingers}</actuator>
    </mujoco>"""


def _gripper(fovy: float) -> str:
    fingers = "".join(
        f'<body name="{side}" pos="{EFFECTOR_AT - 0.045} 0 0" gravcomp="1">'
        f'<joint name="finger_{side}" type="slide" axis="0 {sign} 0" range="0 {GRIPPER / 2}" damping="8" '
        f'armature=".3"/>'
        f'<geom type="box" size=".055 .006 .010" pos="-.005 {sign * 0.006} 0" mass=".05" contype="1" conaffinity="2" '
        f'condim="4" friction="{FRICTION}" rgba="{COLOURS["finger"]}"/></body>'
        for side, sign in (("left", 1), ("right", -1))
    )
    behind, above = EFFECTOR_AT - CAMERA_BEHIND, CAMERA_ABOVE
    return (
        f'<site name="end_effector" pos="{EFFECTOR_AT} 0 0" xyaxes="0 -1 0 0 0 -1" size=".002" rgba="0 0 0 0"/>'
        f'<camera name="wrist" pos="{behind} 0 {above}" xyaxes="0 -1 0 0 0 1" fovy="{fovy}"/>'
        f'<geom class="link" type="box" size=".03 .052 .016" pos=".08 0 -.004" rgba="{COLOURS["dark"]}"/>'
        f'<geom class="link" type="cylinder" fromto="0 0 0 .06 0 0" size=".025"/>'
        f'<geom class="seen" type="box" size=".016 .03 .022" pos="{behind - 0.03} 0 {above}" rgba="{COLOURS["dark"]}"/>'
        f'<geom class="seen" type="box" size=".006 .01 .03" pos="{behind - 0.03} 0 .045" rgba="{COLOURS["dark"]}"/>'
        f"{fingers}"
    )


def _things(table: Table) -> str:
    half = CUP_HEIGHT / 2
    handle = f'class="seen" type="capsule" size=".005" rgba="{COLOURS["cup"]}"'
    return (
        '<geom name="table" class="thing" type="box" size=".5 .6 .02" pos=".3 0 -.02" material="wood"/>'
        f'<geom name="saucer" class="thing" type="cylinder" size="{SAUCER_RADIUS} {SAUCER_HEIGHT / 2}" '
        f'pos="{_list(table.saucer)} {SAUCER_HEIGHT / 2}" rgba="{COLOURS["saucer"]}"/>'
        f'<geom class="seen" type="cylinder" size="{SAUCER_RADIUS * 0.6} .0005" '
        f'pos="{_list(table.saucer)} {SAUCER_HEIGHT + 0.0005}" rgba=".55 .68 .80 1"/>'
        f'<body name="cup" pos="{_list(table.cup)} {half}"><freejoint name="cup"/>'
        f'<geom name="cup" class="thing" type="cylinder" size="{CUP_RADIUS} {half}" mass="{CUP_MASS}" condim="4" '
        f'rgba="{COLOURS["cup"]}"/>'
        f'<geom class="seen" type="cylinder" size="{CUP_RADIUS - 0.004} .0006" pos="0 0 {half}" '
        f'rgba="{COLOURS["coffee"]}"/>'
        f'<geom {handle} fromto=".028 0 .02 .048 0 .014"/><geom {handle} fromto=".048 0 .014 .048 0 -.012"/>'
        f'<geom {handle} fromto=".048 0 -.012 .028 0 -.02"/></body>'
        '<camera name="side" pos=".85 -.62 .55" xyaxes=".64 .77 0 -.36 .30 .88" fovy="48"/>'
    )


def _list(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
