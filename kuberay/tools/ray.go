package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	"github.com/ray-project/kuberay/ray-operator/controllers/ray/common"
	"github.com/ray-project/kuberay/ray-operator/controllers/ray/utils"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

type version struct {
	source     string
	validator  validation.SchemaValidator
	structural *structuralschema.Structural
}

// crd is a kind as several releases of the operator define it.
type crd struct{ versions []version }

func readCRDs(places []string) (map[string]*crd, error) {
	found := map[string]*crd{}
	for _, place := range places {
		paths, err := filepath.Glob(place)
		if err != nil || len(paths) == 0 {
			return nil, fmt.Errorf("no CRD at %s", place)
		}
		for _, path := range paths {
			if err := readCRD(path, found); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return found, nil
}

func readCRD(path string, into map[string]*crd) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	var text io.Reader = file
	if strings.HasSuffix(path, ".gz") {
		if text, err = gzip.NewReader(file); err != nil {
			return err
		}
	}
	all, err := io.ReadAll(text)
	if err != nil {
		return err
	}
	var outer apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(all, &outer); err != nil {
		return err
	}
	for _, one := range outer.Spec.Versions {
		if one.Name != "v1" || !one.Served {
			continue
		}
		var schema apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(one.Schema.OpenAPIV3Schema, &schema, nil); err != nil {
			return err
		}
		validator, _, err := validation.NewSchemaValidator(&schema)
		if err != nil {
			return err
		}
		structural, err := structuralschema.NewStructural(&schema)
		if err != nil {
			return err
		}
		kind := outer.Spec.Names.Kind
		if into[kind] == nil {
			into[kind] = &crd{}
		}
		into[kind].versions = append(into[kind].versions, version{path, validator, structural})
	}
	return nil
}

// checkSchema holds an object against each release's schema: unknown fields (which an API server would leave out, or
// kubectl refuse), then types, enumerations and what is required.
func (c *crd) checkSchema(object map[string]any) []string {
	var findings []string
	for _, one := range c.versions {
		options := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
		for _, path := range pruning.PruneWithOptions(runtime.DeepCopyJSON(object), one.structural, true, options) {
			findings = append(findings, fmt.Sprintf("unknown field %q (%s)", path, filepath.Base(filepath.Dir(one.source))))
		}
		for _, err := range validation.ValidateCustomResource(field.NewPath(""), object, one.validator) {
			findings = append(findings, fmt.Sprintf("%v (%s)", err, one.source))
		}
	}
	return findings
}

// checkRay reads a RayCluster or RayService strictly, asks the operator's own validation, and checks the pods that the
// operator would make of it.
func checkRay(text []byte, object map[string]any, crds map[string]*crd) ([]*corev1.Pod, []string) {
	var findings []string
	kind := fmt.Sprint(object["kind"])
	if crds[kind] == nil {
		findings = append(findings, "there is no CRD to hold it against")
	} else {
		findings = append(findings, crds[kind].checkSchema(object)...)
	}
	var cluster rayv1.RayCluster
	if kind == "RayService" {
		var service rayv1.RayService
		findings = append(findings, strictly(text, &service)...)
		for _, err := range []error{utils.ValidateRayServiceMetadata(service.ObjectMeta), utils.ValidateRayServiceSpec(&service)} {
			if err != nil {
				findings = append(findings, err.Error())
			}
		}
		cluster = rayv1.RayCluster{ObjectMeta: service.ObjectMeta, Spec: service.Spec.RayClusterSpec}
		cluster.Labels = map[string]string{utils.RayOriginatedFromCRDLabelKey: "RayService"}
	} else {
		findings = append(findings, strictly(text, &cluster)...)
		if err := utils.ValidateRayClusterMetadata(cluster.ObjectMeta); err != nil {
			findings = append(findings, err.Error())
		}
	}
	if err := utils.ValidateRayClusterSpec(&cluster.Spec, cluster.Annotations); err != nil {
		findings = append(findings, err.Error())
	}
	if err := utils.ValidateRayClusterUpgradeOptions(&cluster); err != nil {
		findings = append(findings, err.Error())
	}
	if len(findings) > 0 {
		return nil, findings
	}
	pods := podsOf(cluster, utils.GetCRDType(cluster.Labels[utils.RayOriginatedFromCRDLabelKey]))
	for _, pod := range pods {
		findings = append(findings, checkPod(pod)...)
	}
	return pods, findings
}

// podsOf makes the head and one pod of each worker group, as the operator's reconciler does.
func podsOf(given rayv1.RayCluster, creator utils.CRDType) []*corev1.Pod {
	ctx := context.Background()
	cluster := *given.DeepCopy()
	address := utils.GenerateFQDNServiceName(ctx, cluster, cluster.Namespace)
	port := common.GetHeadPort(cluster.Spec.HeadGroupSpec.RayStartParams)
	scales := utils.IsAutoscalingEnabled(&cluster.Spec)
	template := common.DefaultHeadPodTemplate(ctx, cluster, cluster.Spec.HeadGroupSpec, cluster.Name+"-head-", port)
	head := common.BuildPod(ctx, template, rayv1.HeadNode, cluster.Spec.HeadGroupSpec.RayStartParams, port, scales, creator, address, nil, cluster.Spec.RayVersion)
	pods := []*corev1.Pod{&head}
	for _, group := range cluster.Spec.WorkerGroupSpecs {
		template := common.DefaultWorkerPodTemplate(ctx, cluster, group, cluster.Name+"-"+group.GroupName+"-worker-", address, port, "", 0, 0)
		worker := common.BuildPod(ctx, template, rayv1.WorkerNode, group.RayStartParams, port, scales, creator, address, nil, cluster.Spec.RayVersion)
		pods = append(pods, &worker)
	}
	return pods
}
