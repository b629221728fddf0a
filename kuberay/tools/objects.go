package main

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	schedulingvalidation "k8s.io/kubernetes/pkg/apis/scheduling/validation"
	podsecurity "k8s.io/pod-security-admission/api"
	podpolicy "k8s.io/pod-security-admission/policy"
	strictjson "sigs.k8s.io/json"
)

// Kinds of other projects whose types are not here: only that they have a name and a spec is looked at.
var unchecked = map[string]bool{
	"external-secrets.io/v1/ExternalSecret": true,
	"monitoring.coreos.com/v1/PodMonitor":   true, "monitoring.coreos.com/v1/ServiceMonitor": true,
}

// check returns the pods that an object makes, and what is wrong with it and them.
func check(text []byte, object map[string]any, crds map[string]*crd) ([]*corev1.Pod, []string) {
	kind := fmt.Sprintf("%v/%v", object["apiVersion"], object["kind"])
	switch kind {
	case "ray.io/v1/RayCluster", "ray.io/v1/RayService":
		return checkRay(text, object, crds)
	case "apps/v1/Deployment":
		var it appsv1.Deployment
		var its apps.Deployment
		return typed(text, &it, &its, func() field.ErrorList {
			return appsvalidation.ValidateDeployment(&its, corevalidation.PodValidationOptions{})
		}, func() []*corev1.Pod { return []*corev1.Pod{podOf(it.Name, it.Spec.Template)} })
	case "batch/v1/CronJob":
		var it batchv1.CronJob
		var its batch.CronJob
		return typed(text, &it, &its, func() field.ErrorList {
			return batchvalidation.ValidateCronJobCreate(&its, corevalidation.PodValidationOptions{})
		}, func() []*corev1.Pod { return []*corev1.Pod{podOf(it.Name, it.Spec.JobTemplate.Spec.Template)} })
	case "policy/v1/PodDisruptionBudget":
		var it policyv1.PodDisruptionBudget
		var its policy.PodDisruptionBudget
		return typed(text, &it, &its, func() field.ErrorList {
			return policyvalidation.ValidatePodDisruptionBudget(&its, policyvalidation.PodDisruptionBudgetValidationOptions{})
		}, nil)
	case "networking.k8s.io/v1/NetworkPolicy":
		var it networkingv1.NetworkPolicy
		var its networking.NetworkPolicy
		return typed(text, &it, &its, func() field.ErrorList {
			return networkingvalidation.ValidateNetworkPolicy(&its, networkingvalidation.NetworkPolicyValidationOptions{})
		}, nil)
	case "scheduling.k8s.io/v1/PriorityClass":
		var it schedulingv1.PriorityClass
		var its scheduling.PriorityClass
		return typed(text, &it, &its, func() field.ErrorList { return schedulingvalidation.ValidatePriorityClass(&its) }, nil)
	case "v1/Service":
		var it corev1.Service
		var its core.Service
		return typed(text, &it, &its, func() field.ErrorList {
			its.Spec.ClusterIPs = nil // the API server gives it one
			return corevalidation.ValidateServiceCreate(&its)
		}, nil)
	case "v1/ConfigMap":
		var it corev1.ConfigMap
		var its core.ConfigMap
		return typed(text, &it, &its, func() field.ErrorList { return corevalidation.ValidateConfigMap(&its) }, nil)
	case "v1/ServiceAccount":
		var it corev1.ServiceAccount
		var its core.ServiceAccount
		return typed(text, &it, &its, func() field.ErrorList { return corevalidation.ValidateServiceAccount(&its) }, nil)
	case "v1/Namespace":
		var it corev1.Namespace
		var its core.Namespace
		return typed(text, &it, &its, func() field.ErrorList { return corevalidation.ValidateNamespace(&its) }, nil)
	case "v1/PersistentVolumeClaim":
		var it corev1.PersistentVolumeClaim
		var its core.PersistentVolumeClaim
		return typed(text, &it, &its, func() field.ErrorList {
			return corevalidation.ValidatePersistentVolumeClaim(&its, corevalidation.ValidationOptionsForPersistentVolumeClaimCreate())
		}, nil)
	}
	if unchecked[kind] {
		if _, has := object["spec"].(map[string]any); !has {
			return nil, []string{"it has no spec"}
		}
		return nil, nil
	}
	return nil, []string{kind + " is a kind that nothing here can check: add it, or leave it out"}
}

// typed reads an object strictly, validates it as the API server does, and so the pods it makes.
func typed(text []byte, it, its runtime.Object, validate func() field.ErrorList, pods func() []*corev1.Pod) ([]*corev1.Pod, []string) {
	findings := strictly(text, it)
	if len(findings) > 0 {
		return nil, findings
	}
	legacyscheme.Scheme.Default(it)
	if err := legacyscheme.Scheme.Convert(it, its, nil); err != nil {
		return nil, []string{err.Error()}
	}
	for _, err := range validate() {
		findings = append(findings, err.Error())
	}
	if pods == nil {
		return nil, findings
	}
	made := pods()
	for _, pod := range made {
		findings = append(findings, checkPod(pod)...)
	}
	return made, findings
}

// strictly decodes with unknown fields, doubled ones and wrong case refused.
func strictly(text []byte, into any) []string {
	found, err := strictjson.UnmarshalStrict(text, into)
	if err != nil {
		return []string{err.Error()}
	}
	var findings []string
	for _, one := range found {
		findings = append(findings, one.Error())
	}
	return findings
}

func podOf(name string, template corev1.PodTemplateSpec) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "checked", Labels: template.Labels, Annotations: template.Annotations},
		Spec:       template.Spec,
	}
}

// checkPod validates a pod as the API server would, and by the restricted Pod Security Standard.
func checkPod(pod *corev1.Pod) []string {
	var findings []string
	full, its := pod.DeepCopy(), core.Pod{}
	if full.Name == "" {
		full.Name = full.GenerateName + "x"
	}
	legacyscheme.Scheme.Default(full)
	if err := legacyscheme.Scheme.Convert(full, &its, nil); err != nil {
		return []string{err.Error()}
	}
	for _, err := range corevalidation.ValidatePodCreate(&its, corevalidation.PodValidationOptions{}) {
		findings = append(findings, fmt.Sprintf("pod %s: %v", full.Name, err))
	}
	evaluator, err := podpolicy.NewEvaluator(podpolicy.DefaultChecks(), nil)
	if err != nil {
		return append(findings, err.Error())
	}
	level := podsecurity.LevelVersion{Level: podsecurity.LevelRestricted, Version: podsecurity.LatestVersion()}
	if found := podpolicy.AggregateCheckResults(evaluator.EvaluatePod(level, &full.ObjectMeta, &full.Spec)); !found.Allowed {
		findings = append(findings, fmt.Sprintf("pod %s is not restricted: %s", full.Name, found.ForbiddenDetail()))
	}
	for _, container := range append(append([]corev1.Container{}, full.Spec.InitContainers...), full.Spec.Containers...) {
		context := container.SecurityContext
		if context == nil || context.ReadOnlyRootFilesystem == nil || !*context.ReadOnlyRootFilesystem {
			findings = append(findings, fmt.Sprintf("pod %s: container %s may write its root", full.Name, container.Name))
		}
		if container.Resources.Requests.Memory().IsZero() || container.Resources.Limits.Memory().IsZero() || container.Resources.Requests.Cpu().IsZero() {
			findings = append(findings, fmt.Sprintf("pod %s: container %s lacks a request of cpu or memory, or a limit of memory", full.Name, container.Name))
		}
	}
	return findings
}
