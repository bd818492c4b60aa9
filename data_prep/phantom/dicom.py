"""Writing a phantom cine as a DICOM file that enters by the same door as a patient's."""

import io
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid

from data_prep.phantom.projection import SOURCE_TO_DETECTOR, SOURCE_TO_ISOCENTRE
from data_prep.phantom.study import Cine, Patient

STUDY_DATE = "20000101"  # of every phantom: nobody was there


def uid(*sources: object) -> UID:
    """Return the UID that belongs to these sources, the same on every machine."""
    return generate_uid(entropy_srcs=["deepcoro phantom", *(str(source) for source in sources)])


def patient_name(index: int) -> tuple[str, str]:
    """Return PatientName and PatientID of patient number `index`; both say that it is a phantom."""
    return f"PHANTOM^{index:06d}", f"PHANTOM-{index:06d}"


def dicom_cine(cine: Cine, patient: Patient, study_uid: str, number: int) -> FileDataset:
    """Return a multi-frame X-ray angiographic image of a cine; `number` is its InstanceNumber, from 1."""
    num_frames, rows, columns = cine.frames.shape
    sop_uid = uid(study_uid, number)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = uid("implementation")
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = XRayAngiographicImageStorage
    data.SOPInstanceUID = sop_uid
    data.StudyInstanceUID = study_uid
    data.SeriesInstanceUID = uid(study_uid, "series", number)
    data.PatientName, data.PatientID = patient_name(patient.index)
    data.PatientBirthDate = data.PatientSex = ""
    data.StudyDate = data.SeriesDate = STUDY_DATE
    data.StudyTime = "120000"
    data.SeriesTime = f"12{number:02d}00"
    data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.Modality = "XA"
    data.Manufacturer = "DeepCORO phantom"
    data.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    data.BurnedInAnnotation = "NO"
    data.SeriesNumber = data.InstanceNumber = number
    data.PatientOrientation = ""
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = rows, columns
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelRepresentation = 0
    data.PixelIntensityRelationship = "DISP"
    data.WindowCenter, data.WindowWidth = 128, 256
    data.NumberOfFrames = num_frames
    data.FrameIncrementPointer = 0x00181063  # FrameTime
    data.FrameTime = round(1000 / cine.fps, 6)
    data.CineRate = round(cine.fps)
    data.PositionerPrimaryAngle = cine.camera.primary
    data.PositionerSecondaryAngle = cine.camera.secondary
    data.PositionerMotion = "STATIC"
    data.ImagerPixelSpacing = [round(cine.camera.detector_pixel, 6)] * 2
    data.DistanceSourceToDetector = SOURCE_TO_DETECTOR
    data.DistanceSourceToPatient = SOURCE_TO_ISOCENTRE
    data.RadiationSetting = "GR"
    data.KVP = None
    data.ContrastBolusAgent = "phantom"
    pixels = np.ascontiguousarray(cine.frames).tobytes()
    data.PixelData = pixels + b"\0" * (len(pixels) % 2)
    data["PixelData"].VR = "OB"
    return data


def write_dicom(data: FileDataset, path: Path) -> None:
    """Write a data set as a DICOM file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
